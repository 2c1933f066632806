"""The finalizer of revisions: added with the object, removed last, and only when all is clean."""

from __future__ import annotations

from typing import Any, cast

import pytest

from controller.flow.commit import View
from controller.flow.worker import Again, Done
from controller.kube.client import ApiError, KubeClient
from controller.kube.informer import Store
from controller.model.objects import FINALIZER_REVISION, LOCK_KEY, JsonObject, Key
from controller.model.revision import revision_object, wanted_revision
from controller.registry.cache import CacheUnavailable, PackageCache
from controller.stages.cluster import Cluster
from controller.stages.evict import EvictStage

KEY = Key("ProviderRevision", "nop-1")


def revision(**metadata: Any) -> JsonObject:
    return {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "ProviderRevision",
        "metadata": {
            "name": "nop-1",
            "uid": "u1",
            "finalizers": ["acme.org/mine", FINALIZER_REVISION],
            "deletionTimestamp": "2026-01-01T00:00:00Z",
            **metadata,
        },
        "spec": {"image": "r.example.org/nop:v1", "revision": 1},
    }


class Cache:
    """A package cache that notes who was let go, or cannot be used."""

    def __init__(self, *errors: Exception) -> None:
        self.released: list[str] = []
        self._errors = list(errors)

    async def release(self, holder: str) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.released.append(holder)


class Api:
    """Takes patches, or refuses them."""

    def __init__(self, *errors: ApiError) -> None:
        self.patches: list[list[JsonObject]] = []
        self._errors = list(errors)

    async def json_patch(self, _: object, name: str, operations: list[JsonObject]) -> JsonObject:
        if self._errors:
            raise self._errors.pop(0)
        self.patches.append(operations)
        return {}


def stage(obj: JsonObject | None, cache: Cache, api: Api, *, locked: bool = False) -> EvictStage:
    revisions, locks = Store(), Store()
    if obj is not None:
        revisions.put(("", "nop-1"), obj)
    entries = [{"name": "nop-1", "type": "Provider", "source": "r.example.org/nop"}]
    locks.put(("", "lock"), {"metadata": {"name": "lock"}, "packages": entries if locked else []})
    stores = {"ProviderRevision": revisions, "Lock": locks}
    cluster = Cluster(stores=stores, view=lambda _: View())
    return EvictStage(
        cluster=cluster, client=cast("KubeClient", api), cache=cast("PackageCache", cache)
    )


def gone(status: int, reason: str) -> ApiError:
    return ApiError(status=status, reason=reason, message=reason)


def test_f1_the_finalizer_is_there_from_the_first_moment():
    package = {
        "kind": "Provider",
        "metadata": {"name": "nop", "uid": "p"},
        "spec": {"package": "r.example.org/nop:v1"},
    }
    made = revision_object(package, name="nop-1", digest="", number=1, state="Active")
    assert made["metadata"]["finalizers"] == [FINALIZER_REVISION]


def test_f1_a_revision_that_is_being_deleted_is_never_written_again():
    package = {
        "kind": "Provider",
        "metadata": {"name": "nop", "uid": "p"},
        "spec": {"package": "r.example.org/nop:v1"},
    }
    assert wanted_revision(package, [revision()]) is None


@pytest.mark.parametrize(
    ("deleting", "present", "removes"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
async def test_f2_only_ours_is_removed_and_only_on_deletion(deleting, present, removes):
    finalizers = ["acme.org/mine", *([FINALIZER_REVISION] if present else [])]
    when = {"deletionTimestamp": "2026-01-01T00:00:00Z"} if deleting else {}
    obj = revision(finalizers=finalizers)
    obj["metadata"].pop("deletionTimestamp")
    obj["metadata"].update(when)
    cache, api = Cache(), Api()
    assert await stage(obj, cache, api)(KEY) == Done()
    path = "/metadata/finalizers/1"
    assert api.patches == removes * [
        [
            {"op": "test", "path": "/metadata/uid", "value": "u1"},
            {"op": "test", "path": path, "value": FINALIZER_REVISION},
            {"op": "remove", "path": path},
        ]
    ]


async def test_f2_an_object_that_is_gone_already_is_success():
    assert await stage(revision(), Cache(), Api(gone(404, "NotFound")))(KEY) == Done()
    assert await stage(None, Cache(), Api())(KEY) == Done()


async def test_f2_a_refused_removal_is_tried_again():
    with pytest.raises(ApiError, match="Invalid"):
        await stage(revision(), Cache(), Api(gone(422, "Invalid")))(KEY)


async def test_f3_cleaning_up_twice_and_without_a_beginning_is_harmless():
    cache, api = Cache(), Api()
    evict = stage(revision(), cache, api)
    assert await evict(KEY) == await evict(KEY) == Done()
    assert cache.released == ["u1", "u1"]


async def test_f4_a_failed_clean_up_keeps_the_finalizer_and_states_why():
    cache, api = Cache(CacheUnavailable("the folder is read-only")), Api()
    evict = stage(revision(), cache, api)
    outcome = await evict(KEY)
    assert isinstance(outcome, Again)
    assert outcome.after is None, "the backoff decides"
    assert outcome.report is not None
    (condition,) = outcome.report.conditions
    assert (condition.type, condition.status) == ("Evicted", "False")
    assert "the folder is read-only" in condition.message
    assert not api.patches
    assert await evict(KEY) == Done()
    assert len(api.patches) == 1


async def test_f4_the_lock_entry_goes_first():
    cache, api = Cache(), Api()
    outcome = await stage(revision(), cache, api, locked=True)(KEY)
    assert isinstance(outcome, Again)
    assert outcome.next == (("resolve", LOCK_KEY),)
    assert not cache.released
    assert not api.patches


def test_f5_the_finalizer_is_named_for_its_domain():
    assert FINALIZER_REVISION == "revision.pkg.crossplane.io"
