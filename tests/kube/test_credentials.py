"""When credentials are read again: in virtual time, on readings that the test makes up."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import structlog

from controller.kube.credentials import (
    PLUGIN_PAUSE,
    REREAD_SECONDS,
    RETRY_SECONDS,
    ConfigError,
    Login,
    RereadCredentials,
    renewal_delay,
    stamps_of,
)
from controller.kube.tls import TlsSettings
from tests.fakes.clock import VirtualTimeLoop


def virtually(work: Coroutine[Any, Any, None]) -> None:
    with (
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
        structlog.testing.capture_logs(),
    ):
        runner.run(work)


class Source:
    """Gives tokens t1, t2 and so on; each reading takes a second."""

    def __init__(self, **more: Any) -> None:
        self.more = more
        self.readings = 1
        self.fails = False
        self.stays = False  # whether each reading gives the same

    def login(self) -> Login:
        token = 1 if self.stays else self.readings
        told = {"server": "s", "namespace": "n", "tls": TlsSettings(), **self.more}
        return Login(authorization=f"Bearer t{token}", **told)

    async def load(self) -> Login:
        await asyncio.sleep(1)
        self.readings += 1
        if self.fails:
            raise ConfigError("log in first")
        return self.login()

    def credentials(self) -> RereadCredentials:
        return RereadCredentials(self.login(), self.load)


@pytest.mark.parametrize(
    ("reread", "lifetime", "delay"),
    [
        (False, None, None),
        (True, None, REREAD_SECONDS),
        (False, 3600, 3540),
        (False, 100, 80),
        (False, 5, PLUGIN_PAUSE),
        (False, -1_000_000, PLUGIN_PAUSE),
        (True, 3600, 3540),
    ],
)
def test_renewal_comes_before_the_end_but_never_in_a_hot_loop(
    reread: bool, lifetime: float | None, delay: float | None
):
    assert renewal_delay(reread=reread, lifetime=lifetime) == delay


def test_a_token_file_is_read_again_at_most_once_a_minute_for_all():
    async def work() -> None:
        source = Source(reread=True)
        credentials = source.credentials()
        for _ in range(10):
            await asyncio.gather(*(credentials.authorization() for _ in range(20)))
            await asyncio.sleep(REREAD_SECONDS / 4)
        assert source.readings == 1 + 2
        assert await credentials.authorization() == "Bearer t3"

    virtually(work())


def test_a_token_without_an_end_stays():
    async def work() -> None:
        source = Source()
        credentials = source.credentials()
        await asyncio.sleep(1_000_000)
        assert await credentials.authorization() == "Bearer t1"

    virtually(work())


def test_while_one_reads_the_others_go_on_with_what_has_not_ended():
    async def work() -> None:
        credentials = Source(plugin=True, lifetime=100.0).credentials()
        await asyncio.sleep(90)
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def one() -> tuple[str | None, float]:
            return await credentials.authorization(), loop.time() - started

        answers = await asyncio.gather(*(one() for _ in range(20)))
        assert answers == [("Bearer t2", 1)] + [("Bearer t1", 0)] * 19

    virtually(work())


def test_what_has_ended_is_waited_for_by_all():
    async def work() -> None:
        source = Source(plugin=True, lifetime=100.0)
        credentials = source.credentials()
        await asyncio.sleep(101)
        answers = await asyncio.gather(*(credentials.authorization() for _ in range(20)))
        assert set(answers) == {"Bearer t2"}
        assert source.readings == 2

    virtually(work())


def test_a_plugin_whose_credentials_have_always_ended_runs_in_pauses():
    async def work() -> None:
        source = Source(plugin=True, lifetime=-1.0)
        credentials = source.credentials()
        for _ in range(100):
            await credentials.authorization()
            await asyncio.sleep(1)
        assert source.readings <= 1 + 100 / PLUGIN_PAUSE

    virtually(work())


def test_a_failed_reading_keeps_the_earlier_one_and_is_tried_again():
    async def work() -> None:
        source = Source(reread=True)
        source.fails = True
        credentials = source.credentials()
        await asyncio.sleep(REREAD_SECONDS)
        for _ in range(10):
            assert await credentials.authorization() == "Bearer t1"
        assert source.readings == 2
        source.fails = False
        await asyncio.sleep(RETRY_SECONDS)
        assert await credentials.authorization() == "Bearer t3"

    virtually(work())


def test_concurrent_refusals_share_one_reading():
    async def work() -> None:
        source = Source()
        credentials = source.credentials()
        results = await asyncio.gather(*(credentials.renew("Bearer t1") for _ in range(20)))
        assert all(results)
        assert source.readings == 2

    virtually(work())


def test_refusals_of_what_does_not_change_share_readings_too():
    async def work() -> None:
        source = Source()
        source.stays = True
        credentials = source.credentials()
        results = await asyncio.gather(*(credentials.renew("Bearer t1") for _ in range(20)))
        assert not any(results)
        assert source.readings == 3  # one that was under way for the others, and one of theirs

    virtually(work())


def test_a_plugin_is_not_run_for_each_refusal():
    async def work() -> None:
        source = Source(plugin=True)
        source.stays = True
        credentials = source.credentials()
        await asyncio.sleep(PLUGIN_PAUSE)
        for _ in range(10):
            await asyncio.gather(*(credentials.renew("Bearer t1") for _ in range(20)))
        assert source.readings == 2

    virtually(work())


def test_another_client_certificate_counts_as_renewed():
    async def work() -> None:
        source = Source(plugin=True)
        source.stays = True
        credentials = source.credentials()
        await asyncio.sleep(PLUGIN_PAUSE)
        source.more["tls"] = TlsSettings(certificate=b"new", key=b"k")
        results = await asyncio.gather(*(credentials.renew("Bearer t1") for _ in range(20)))
        assert all(results)
        assert source.readings == 2
        assert credentials.tls.certificate == b"new"

    virtually(work())


def test_who_is_cancelled_while_reading_leaves_the_reading_to_the_next():
    async def work() -> None:
        source = Source(reread=True)
        credentials = source.credentials()
        await asyncio.sleep(REREAD_SECONDS)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await credentials.authorization()
        assert await credentials.authorization() == "Bearer t2"

    virtually(work())


def test_a_slow_plugin_delays_one_caller_and_not_the_next_while_the_token_is_good():
    async def work() -> None:
        source = Source(plugin=True, lifetime=600.0)
        credentials = source.credentials()
        await asyncio.sleep(550)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await credentials.authorization()
        async with asyncio.timeout(0.5):
            assert await credentials.authorization() == "Bearer t1"
        await asyncio.sleep(RETRY_SECONDS)
        assert await credentials.authorization() == "Bearer t2"

    virtually(work())


def test_a_kubeconfig_that_was_written_again_is_read_a_minute_later_at_most(tmp_path: Path):
    async def work() -> None:
        file = tmp_path / "c"
        file.write_text("a")
        source = Source(files=(file,), stamps=stamps_of((file,)))
        credentials = source.credentials()
        await asyncio.sleep(REREAD_SECONDS)
        assert await credentials.authorization() == "Bearer t1"
        file.write_text("longer")
        source.more["stamps"] = stamps_of((file,))
        assert await credentials.authorization() == "Bearer t1"
        await asyncio.sleep(REREAD_SECONDS)
        assert await credentials.authorization() == "Bearer t2"
        await credentials.look_again()
        assert source.readings == 2
        file.write_text("even longer")
        source.more["stamps"] = stamps_of((file,))
        await credentials.look_again()
        assert source.readings == 3

    virtually(work())


def test_no_secret_is_shown():
    tls = TlsSettings(certificate=b"c", key=b"hunter2")
    login = Login(server="s", namespace="n", authorization="Bearer hunter2", tls=tls)
    assert "hunter2" not in repr(login)
