"""The reflector's promises, one by one, against a cluster in miniature and in virtual time."""

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.kube import reading, reflector
from controller.kube.watchstate import INTERNAL_ERRORS_MAX
from tests.fakes.apiserver import refusal
from tests.fakes.cluster import Fault, line
from tests.kube.watched import NAMESPACE, Watched, in_virtual_time

CORRUPT = Fault("line", body=line("ERROR", refusal(500, "StorageReadError", "corrupt")).strip())
INTERNAL = Fault("line", body=line("ERROR", refusal(500, "InternalError", "oops")).strip())
EXPIRED = Fault("status", 410, refusal(410, "Expired", "too old resource version"))
TOO_LARGE = Fault(
    "status", 504, refusal(504, "Timeout", "Too large resource version: 10, current: 9")
)
BUSY = Fault("status", 429, refusal(429, "TooManyRequests", "slow"), {"Retry-After": "17"})
UNAVAILABLE = Fault("status", 503, refusal(503, "ServiceUnavailable", "soon"))
FORBIDDEN = Fault("status", 403, refusal(403, "Forbidden", "secrets is forbidden"))
TABLE = {"kind": "Table", "metadata": {"resourceVersion": "3"}, "rows": []}
NOW = 0.05  # seconds of virtual time that an exchange takes at most


async def relisted(watched: Watched, lists: int) -> None:
    """Make the watch fail so that the list is read again, and wait for it."""
    await watched.watching()
    watched.cluster.strike(CORRUPT)
    watched.put("struck")
    await watched.until(lambda: watched.verbs().count("list") >= lists)
    await watched.synced()


# ---- resource versions ---------------------------------------------------------------------------


@in_virtual_time
async def test_r1_lists_ask_for_any_state_and_then_for_at_least_the_last_one():
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.advance(10)
        async with watched.running():
            await relisted(watched, 2)
            assert watched.cluster.versions("list") == ["0", "10"]
            await relisted(watched, 3)
    assert watched.cluster.versions("list") == ["0", "10", "11"]


@in_virtual_time
async def test_r1_r2_a_list_that_expired_asks_at_once_for_the_newest_state():
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.advance(10)
        async with watched.running():
            await watched.watching()
            watched.cluster.fail("list", EXPIRED)
            await relisted(watched, 3)
            await relisted(watched, 4)
    assert watched.cluster.versions("list") == ["0", "10", "", "11"]
    assert watched.gaps("list")[1] < NOW


@in_virtual_time
async def test_r1_r3_a_list_of_the_future_asks_at_once_for_the_newest_state():
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.advance(10)
        async with watched.running():
            await watched.watching()
            watched.cluster.fail("list", TOO_LARGE)
            await relisted(watched, 3)
            await relisted(watched, 4)
    assert watched.cluster.versions("list") == ["0", "10", "", "11"]
    assert watched.gaps("list")[1] < NOW


@in_virtual_time
async def test_r1_streaming_lists_ask_for_at_least_the_last_state():
    async with Watched.beside() as watched:
        watched.cluster.advance(10)
        async with watched.running():
            await watched.watching()
            watched.cluster.strike(CORRUPT)
            watched.put("a")
            await watched.synced()
    assert watched.cluster.versions("stream") == ["", "10"]


@pytest.mark.parametrize("in_stream", [True, False])
@in_virtual_time
async def test_r2_an_expired_watch_keeps_its_version(in_stream: bool):
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.expired_in_stream = in_stream
        watched.cluster.advance(10)
        async with watched.running():
            await watched.watching()
            watched.cluster.strike(Fault("reset"))
            watched.put("a")
            watched.cluster.compact()
            await watched.synced()
    assert watched.cluster.versions("list") == ["0", "10"]
    assert watched.cluster.versions("watch")[:2] == ["10", "10"]


@in_virtual_time
async def test_r5_a_watch_begins_at_the_version_of_the_list():
    async with Watched.beside(streaming=False) as watched:
        watched.put("a")
        watched.cluster.advance(50)
        async with watched.running():
            await watched.watching()
            assert watched.informer.store.resource_version == "50"
    assert watched.cluster.versions("watch") == ["50"]


# ---- pages ---------------------------------------------------------------------------------------


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_SIZE", 3)


def lists(watched: Watched) -> list[tuple[str, str, bool]]:
    """Version, limit and whether a token was sent, of all lists."""
    queries = [seen.query for seen in watched.cluster.requests if seen.verb == "list"]
    return [(q.get("resourceVersion", ""), q.get("limit", ""), "continue" in q) for q in queries]


@in_virtual_time
async def test_r4_a_list_from_a_cache_is_whole_and_later_ones_have_no_limit(small_pages: None):
    async with Watched.beside(streaming=False) as watched:
        for n in range(8):
            watched.put(f"o{n}")
        async with watched.running():
            await relisted(watched, 2)
    assert lists(watched) == [("0", "3", False), ("9", "", False)]


@in_virtual_time
async def test_r4_where_the_first_list_came_in_pages_all_do(small_pages: None):
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.cached = False
        for n in range(8):
            watched.put(f"o{n}")
        async with watched.running():
            await watched.synced()
            assert lists(watched) == [("0", "3", False), ("", "3", True), ("", "3", True)]
            await relisted(watched, 6)
    assert lists(watched)[3:] == [("9", "3", False), ("", "3", True), ("", "3", True)]


@in_virtual_time
async def test_r4_pages_that_expire_are_followed_by_the_whole_list(small_pages: None):
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.cached = False
        for n in range(8):
            watched.put(f"o{n}")
        watched.cluster.fail("list", Fault("none"), EXPIRED)
        async with watched.running():
            await watched.synced()
    assert lists(watched) == [("0", "3", False), ("", "3", True), ("0", "", False)]
    assert max(watched.gaps("list")) < NOW


@in_virtual_time
async def test_r4_the_newest_state_is_asked_for_in_pages(small_pages: None):
    async with Watched.beside(streaming=False) as watched:
        for n in range(4):
            watched.put(f"o{n}")
        watched.cluster.fail("list", EXPIRED)
        async with watched.running():
            await watched.synced()
    assert lists(watched) == [("0", "3", False), ("", "3", False), ("", "3", True)]


# ---- watches -------------------------------------------------------------------------------------


@in_virtual_time
async def test_r6_bookmarks_move_the_version_and_nothing_else():
    async with Watched.beside(streaming=False) as watched:
        watched.put("a")
        watched.cluster.advance(10)
        async with watched.running():
            await watched.watching()
            for version in (20, 30, 40):
                watched.cluster.advance(version)
                await asyncio.sleep(61)
                watched.cluster.strike(Fault("reset"))
                await asyncio.sleep(5)
            assert watched.changes == [("add", "a")]
            assert watched.informer.store.resource_version == "40"
    assert watched.cluster.versions("watch") == ["10", "20", "30", "40"]
    for seen in watched.cluster.requests[-4:]:
        assert seen.query["allowWatchBookmarks"] == "true"
        assert 300 <= int(seen.query["timeoutSeconds"]) <= 600


@in_virtual_time
async def test_r6_a_watch_that_the_server_ends_in_time_goes_on_at_once():
    async with Watched.beside() as watched, watched.running():
        await asyncio.sleep(4 * 3600)
    assert watched.verbs()[0] == "stream"
    assert set(watched.verbs()[1:]) == {"watch"}
    assert 4 * 6 <= len(watched.verbs()) <= 4 * 12 + 1
    assert all(300 <= gap <= 602 for gap in watched.gaps())


@in_virtual_time
async def test_r7_the_objects_that_a_watch_from_no_version_begins_with_have_no_order():
    async with Watched.beside(streaming=False) as watched:
        watched.put("a")
        watched.cluster.fail("list", Fault("body", body={"kind": "SecretList", "metadata": {}}))
        async with watched.running():
            await watched.synced()
            watched.cluster.strike(Fault("reset"))
            await asyncio.sleep(5)
            watched.put("a")
            await watched.synced()
            watched.cluster.strike(Fault("reset"))
            await asyncio.sleep(5)
    assert watched.cluster.versions("watch") == ["", "", "3"]


@pytest.mark.parametrize("kind", ["reset", "close", "torn"])
@in_virtual_time
async def test_r8_a_watch_that_ended_goes_on_where_it_was(kind: str):
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.put("a")
        await watched.synced()
        await asyncio.sleep(5)
        watched.cluster.strike(Fault(kind))
        watched.put("b")
        await watched.synced()
        await watched.watching()
    assert watched.cluster.versions("watch") == ["2"]
    assert watched.changes == [("add", "a"), ("add", "b")]
    assert watched.verbs() == ["stream", "watch"]


@in_virtual_time
async def test_r8_a_server_that_takes_no_connection_is_asked_calmly_and_not_listed_again():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.fail("watch", *[Fault("reset")] * 100)
        watched.cluster.strike(Fault("reset"))
        watched.put("a")
        await watched.synced()
    assert watched.verbs() == ["stream", *["watch"] * 101]
    gaps = watched.gaps("watch")
    # The HTTP library sends a request anew, once, whose connection was lost before an answer.
    assert all(0.8 <= first + second <= 1.7 for first, second in itertools.pairwise(gaps))


@in_virtual_time
async def test_r8_too_many_requests_wait_as_told_and_lead_to_no_list():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        await asyncio.sleep(5)
        watched.cluster.fail("watch", BUSY, BUSY, UNAVAILABLE)
        watched.cluster.strike(Fault("reset"))
        watched.put("a")
        await watched.synced()
    assert watched.verbs() == ["stream", *["watch"] * 4]
    assert all(17 <= gap <= 35 for gap in watched.gaps("watch")[:2])


@in_virtual_time
async def test_r8_internal_errors_of_a_watch_are_borne_three_times():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.fail("watch", *[INTERNAL] * (INTERNAL_ERRORS_MAX + 1))
        watched.cluster.strike(INTERNAL)
        for n in range(8):
            watched.put(f"o{n}")
            await asyncio.sleep(60)
        await watched.synced()
    expected = ["stream", *["watch"] * INTERNAL_ERRORS_MAX, "stream"]
    assert watched.verbs()[: len(expected)] == expected


@in_virtual_time
async def test_r8_any_other_error_of_a_watch_leads_to_a_list_which_finds_what_vanished():
    async with Watched.beside() as watched:
        watched.put("a")
        async with watched.running():
            await watched.watching()
            watched.cluster.strike(CORRUPT)
            watched.delete("a")
            await watched.synced()
    assert watched.verbs() == ["stream", "stream"]
    assert watched.changes == [("add", "a"), ("delete", "a")]
    assert watched.gaps()[0] >= 0.8


@in_virtual_time
async def test_r9_watches_that_end_at_once_with_nothing_are_asked_for_ever_more_slowly():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.fail("watch", *[Fault("close")] * 200)
        watched.cluster.strike(Fault("close"))
        await asyncio.sleep(3600)
    gaps = watched.gaps("watch")
    assert gaps[0] < 2
    assert all(30 <= gap <= 61 for gap in gaps[8:])
    assert set(watched.verbs()[1:]) == {"watch"}


@in_virtual_time
async def test_r9_watches_that_end_at_once_with_an_event_are_no_hot_loop():
    async with Watched.beside() as watched:
        watched.cluster.fail("watch", *[Fault("close", after=1)] * 1000)
        async with watched.running():
            await watched.watching()
            watched.cluster.strike(Fault("close"))
            for n in range(600):
                watched.put(f"o{n}")
                await asyncio.sleep(0.1)
    assert len(watched.verbs()) < 90


# ---- streaming lists -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "verbs", "versions"),
    [
        ([], ["stream"], [""]),
        ([Fault("close", after=1)], ["stream", "stream"], ["", ""]),
        ([Fault("torn", after=1)], ["stream", "stream"], ["", ""]),
        ([Fault("reset", after=2)], ["stream", "stream"], ["", ""]),
        ([Fault("close", after=1)] * 2, ["stream", "stream", "list"], ["", "", "0"]),
        ([BUSY], ["stream", "stream"], ["", ""]),
        ([EXPIRED], ["stream", "stream"], ["", ""]),
        ([TOO_LARGE], ["stream", "stream"], ["", ""]),
        ([FORBIDDEN], ["stream", "list"], ["", "0"]),
        ([UNAVAILABLE], ["stream", "list"], ["", "0"]),
        ([INTERNAL], ["stream", "list"], ["", "0"]),
        ([CORRUPT], ["stream", "list"], ["", "0"]),
        ([Fault("line", body=b"<html>", after=1)], ["stream", "list"], ["", "0"]),
        ([Fault("line", body=line("ADDED", TABLE).strip())], ["stream", "list"], ["", "0"]),
    ],
)
@in_virtual_time
async def test_r10_what_ends_a_streaming_list_and_what_follows(
    faults: list[Fault], verbs: list[str], versions: list[str]
):
    async with Watched.beside() as watched:
        for n in range(4):
            watched.put(f"o{n}")
        watched.cluster.fail("stream", *faults)
        async with watched.running():
            await watched.synced()
            await asyncio.sleep(5)
    listing = [seen for seen in watched.cluster.requests if seen.verb != "watch"]
    assert [seen.verb for seen in listing] == verbs
    assert [seen.version for seen in listing] == versions
    assert sorted(watched.changes) == [("add", f"o{n}") for n in range(4)]


@in_virtual_time
async def test_r10_a_streaming_list_never_asks_for_an_expired_version_twice():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.fail("stream", EXPIRED)
        watched.cluster.strike(CORRUPT)
        watched.put("a")
        await watched.synced()
        await watched.watching()
        watched.cluster.strike(CORRUPT)
        watched.put("b")
        await watched.synced()
    assert watched.cluster.versions("stream") == ["", "1", "", "2"]


@in_virtual_time
async def test_r10_a_server_without_streaming_lists_is_not_asked_for_them_again():
    async with Watched.beside(streaming=False) as watched, watched.running():
        await relisted(watched, 2)
    assert watched.verbs() == ["stream", "list", "watch", "list", "watch"]


@in_virtual_time
async def test_r10_a_streaming_list_whose_end_never_comes_is_given_up():
    async with Watched.beside() as watched:
        watched.put("a")
        watched.cluster.fail("stream", *[Fault("slow", after=1)] * 2)
        async with watched.running():
            await watched.synced()
    assert watched.verbs() == ["stream", "stream", "list", "watch"]
    assert all(gap <= reflector.LIST_DEADLINE + 5 for gap in watched.gaps())


# ---- the end, and what is odd --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        ("stream", Fault("silent")),
        ("stream", Fault("slow")),
        ("stream", BUSY),
        ("list", Fault("endless")),
        ("list", Fault("silent")),
        ("watch", Fault("slow")),
        ("watch", Fault("silent")),
        ("watch", Fault("close")),
        ("watch", Fault("none")),
    ],
)
@in_virtual_time
async def test_r11_stopping_ends_everything_at_once(verb: str, fault: Fault):
    """The clients' connections are given back and no task is left: ``Watched`` looks."""
    loop = asyncio.get_running_loop()
    async with Watched.beside(streaming=verb == "stream") as watched:
        watched.put("a")
        watched.cluster.fail(verb, fault)
        async with watched.running():
            await watched.until(lambda: verb in watched.verbs())
            await asyncio.sleep(0.5)
            stopped = loop.time()
        assert loop.time() - stopped < NOW


@in_virtual_time
async def test_r11_stopping_before_the_first_step_is_fine():
    async with Watched.beside() as watched, watched.running():
        pass
    assert watched.verbs() == []


@in_virtual_time
async def test_r12_what_is_no_object_of_the_kind_is_skipped():
    items: list[Any] = [
        {"metadata": {"name": "a", "namespace": "n", "resourceVersion": "2"}},
        {"kind": "Pod", "metadata": {"name": "b", "namespace": "n"}},
        {"metadata": None},
        {},
    ]
    answer = {"items": items, "kind": "SecretList", "metadata": {"resourceVersion": "2"}}
    async with Watched.beside(streaming=False) as watched:
        watched.cluster.advance(10)
        watched.cluster.fail("list", Fault("body", body=answer))
        async with watched.running():
            await watched.watching()
            for odd in ({"kind": "Pod", "metadata": {"name": "c"}}, {"kind": "Secret"}):
                await watched.cluster.open[0].response.write(line("ADDED", odd))
            watched.put("d")
            await watched.until(lambda: ("add", "d") in watched.changes)
    assert watched.changes == [("add", "a"), ("add", "d")]
    assert watched.verbs() == ["stream", "list", "watch"]


@in_virtual_time
async def test_r12_a_table_is_refused():
    async with Watched.beside(streaming=False) as watched:
        watched.put("a")
        watched.cluster.fail("list", Fault("body", body=TABLE), Fault("body", body=b"<html>"))
        async with watched.running():
            await watched.synced()
    assert watched.verbs() == ["stream", "list", "list", "list", "watch"]
    assert watched.changes == [("add", "a")]
    assert min(watched.gaps("list")) >= 0.8


@in_virtual_time
async def test_metadata_alone_of_some_objects_is_watched_too():
    selection: dict[str, Any] = {"namespace": "n", "label_selector": "team=a"}
    async with Watched.beside(metadata_only=True, **selection) as watched:
        watched.put("a", labels={"team": "a"}, data={"k": "v"})
        watched.put("b", labels={"team": "b"})
        async with watched.running():
            await watched.watching()
            watched.put("b", labels={"team": "a"})
            watched.put("a", labels={})
            await watched.until(lambda: len(watched.changes) == 3)
    assert watched.changes == [("add", "a"), ("add", "b"), ("delete", "a")]
    (stored,) = watched.informer.store.list()
    assert set(stored) == {"apiVersion", "kind", "metadata"}


# ---- peers that are there and do nothing ---------------------------------------------------------


@in_virtual_time
async def test_a_silent_peer_is_given_up_within_150_seconds():
    loop = asyncio.get_running_loop()
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.strike(Fault("silent"))
        silent_since = loop.time()
        watched.put("a")
        await watched.synced()
        assert loop.time() - silent_since < 150
    assert watched.verbs() == ["stream", "watch"]


@in_virtual_time
async def test_a_peer_of_a_byte_a_second_is_given_up_within_150_seconds():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        watched.cluster.strike(Fault("slow"))
        watched.put("a", data={"a byte a second": "x" * 5000})
        await watched.synced()
    assert watched.verbs() == ["stream", "watch"]
    assert watched.gaps()[0] < 150


@in_virtual_time
async def test_a_watch_that_the_server_forgets_to_end_is_left():
    async with Watched.beside() as watched, watched.running():
        watched.cluster.fail("stream", Fault("endless"))
        watched.cluster.fail("watch", Fault("endless"))
        await asyncio.sleep(1500)
    assert watched.verbs()[:3] == ["stream", "watch", "watch"]
    assert all(330 <= gap <= 632 for gap in watched.gaps()[:2])


@in_virtual_time
async def test_a_list_that_never_ends_is_given_up():
    async with Watched.beside(streaming=False) as watched:
        watched.put("a")
        watched.cluster.fail("list", Fault("endless"))
        async with watched.running():
            await watched.synced()
    assert watched.verbs() == ["stream", "list", "list", "watch"]
    assert 120 <= watched.gaps("list")[0] <= 125


# ---- whatever happens ----------------------------------------------------------------------------

FAULTS = {
    "watch": [
        *(Fault(kind, after=after) for kind in ("close", "reset", "torn") for after in (0, 1, 2)),
        *(CORRUPT, INTERNAL, EXPIRED, BUSY, UNAVAILABLE, FORBIDDEN, Fault("silent")),
        Fault("line", body=b"<html>"),
    ],
    "list": [
        EXPIRED,
        TOO_LARGE,
        BUSY,
        UNAVAILABLE,
        Fault("endless"),
        Fault("torn"),
        Fault("reset"),
    ],
}
FAULTS["stream"] = [*FAULTS["watch"], TOO_LARGE, Fault("slow")]

STEPS = st.one_of(
    st.tuples(st.just("put"), st.sampled_from("abcd"), st.floats(0, 5)),
    st.tuples(st.just("delete"), st.sampled_from("abcd"), st.floats(0, 5)),
    st.tuples(st.just("compact"), st.none(), st.floats(0, 5)),
    st.tuples(st.just("strike"), st.sampled_from(FAULTS["watch"]), st.floats(0, 200)),
    *(
        st.tuples(st.just(verb), st.sampled_from(faults), st.floats(0, 50))
        for verb, faults in FAULTS.items()
    ),
)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, max_size=30), streaming=st.booleans(), cached=st.booleans())
def test_whatever_goes_wrong_the_store_ends_as_the_server_is_and_no_loop_is_hot(
    steps: list[tuple[str, Any, float]], streaming: bool, cached: bool
):
    @in_virtual_time
    async def check() -> None:
        async with Watched.beside(streaming=streaming) as watched:
            watched.cluster.cached = cached
            async with watched.running():
                for step, what, seconds in steps:
                    perform(watched, step, what)
                    await asyncio.sleep(seconds)
                await watched.synced()
        assert replayed(watched.changes) == {name for _, name in watched.served}
        assert busiest_minute(watched) <= 100

    check()


def perform(watched: Watched, step: str, what: Any) -> None:
    cluster = watched.cluster
    if step == "put":
        watched.put(what)
    elif step == "delete" and (NAMESPACE, what) in watched.served:
        watched.delete(what)
    elif step == "compact":
        cluster.compact()
    elif step == "strike":
        cluster.strike(what)
    elif step in FAULTS:
        cluster.fail(step, what)


def replayed(changes: list[tuple[str, str]]) -> set[str]:
    """Return the names that are left; every change must fit to what was there."""
    names: set[str] = set()
    for kind, name in changes:
        assert (name in names) == (kind != "add"), changes
        (names.discard if kind == "delete" else names.add)(name)
    return names


def busiest_minute(watched: Watched) -> int:
    times = [seen.at for seen in watched.cluster.requests]
    return max((sum(at <= other < at + 60 for other in times) for at in times), default=0)


@in_virtual_time
async def test_a_kind_that_is_not_served_is_told_apart_until_it_is_again():
    async with Watched.beside() as watched, watched.running():
        await watched.watching()
        reflector = watched.informer._reflector
        served = [reflector.served]
        missing = Fault("status", 404, refusal(404, "NotFound", "not served"))
        watched.cluster.fail("stream", missing, missing)
        watched.cluster.fail("list", missing, missing)
        watched.cluster.fail("watch", missing, missing)
        watched.cluster.strike(Fault("reset"))
        await asyncio.sleep(3)
        served.append(reflector.served)
        await asyncio.sleep(300)
        assert [*served, reflector.served] == [True, False, True]
