"""The course of a soak: install, rest, then churn, fault and recovery in turn until time is up."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tests.bench import process
from tests.lab.errors import LabError
from tests.soak import world
from tests.soak.churn import Churn
from tests.soak.faults import Fault, drawn
from tests.soak.report import RECOVERY_LIMIT, LogLines, Phase, Recovery, Soak, read_log
from tests.soak.samples import Sampler
from tests.soak.stand import Stand, running

INSTALL_LIMIT = 300.0  # seconds for the first installation of everything
POLL = 0.5  # seconds between looks whether all is as wanted
CALM = (10.0, 35.0)  # seconds of churn before a fault
IDLE_EVERY = 4  # faults between two rests
IDLE_SHARE, IDLE_MOST = 0.1, 60.0  # of the whole time; seconds


def say(line: str) -> None:
    """Tell how it goes."""
    sys.stdout.write(f"{datetime.now():%H:%M:%S} {line}\n")  # noqa: DTZ005 - for the person here
    sys.stdout.flush()


class Course:
    """One soak."""

    def __init__(self, stand: Stand, *, minutes: float, seed: int) -> None:
        self._stand = stand
        self._minutes = minutes
        self._seed = seed
        self._chance = random.Random(seed)
        self._churn = Churn(stand.platform, seed)
        self._phase = "install"
        ports = (stand.manager.health_port, stand.manager.metrics_port)
        self._sampler = Sampler(stand.pid, ports, lambda: self._phase)
        self._recoveries: list[Recovery] = []
        self._problems: list[str] = []
        self._phases: dict[str, Phase] = {}
        self._begun = time.monotonic()
        self._began = f"{datetime.now():%Y-%m-%dT%H-%M}"  # noqa: DTZ005 - names a file

    def run(self) -> Soak:
        """Run to the end, or to Ctrl-C; return what was seen."""
        interrupted = False
        self._begun = time.monotonic()
        self._sampler.start()
        try:
            self._go()
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted: the report is of what was seen so far")
        except process.ProcessGoneError:
            self._problems.append(f"the manager ended by itself:\n{self._stand.manager.tail()}")
        except LabError as error:
            self._problems.append(f"the lab failed: {error}")
        self._end()
        return self._seen(interrupted=interrupted)

    def _go(self) -> None:
        world.push_all(self._stand.platform)
        with self._during("install"):
            self._churn.install()
            installed = self._recovered("install", 0.0, time.monotonic(), INSTALL_LIMIT)
        say(f"everything is installed after {installed.cluster_seconds} s")
        if installed.cluster_seconds is None:
            self._problems.append(f"not everything was installed: {installed.missing[:3]}")
            return
        self._churn.start()
        faults = drawn(self._chance)
        end = self._begun + self._minutes * 60
        self._rest(end)
        while time.monotonic() < end and not self._churn.failure:
            fault, seconds = next(faults)
            self._strike(fault, seconds)
            if len(self._recoveries) % IDLE_EVERY == 0:
                self._rest(end)
        if self._churn.failure:
            self._problems.append(f"the churn itself failed: {self._churn.failure}")

    def _rest(self, end: float) -> None:
        """Let nothing happen for a while, so that the requests of the idle manager are seen."""
        with self._during("idle"):
            seconds = min(IDLE_MOST, IDLE_SHARE * self._minutes * 60, end - time.monotonic())
            self._wait(max(0.0, seconds))

    def _strike(self, fault: Fault, seconds: float) -> None:
        """Let things change, let a fault happen meanwhile, and wait until all is as wanted."""
        with self._during("churn"):
            self._churn.go()
            self._wait(self._chance.uniform(*CALM))
        at = time.monotonic()
        with self._during("fault"):
            back = fault.make(self._stand, seconds, self._wait)
        with self._during("recovery"):
            self._churn.pause()
            recovery = self._recovered(fault.name, at, back, RECOVERY_LIMIT)
        self._recoveries.append(recovery)
        say(
            f"{fault.name} for {recovery.lasted} s: manager {recovery.manager_seconds} s,"
            f" cluster {recovery.cluster_seconds} s; {self._churn.acts.total()} changes so far"
        )
        for line in recovery.missing:
            say(f"  {line}")
        if recovery.cluster_seconds is None:
            self._churn.touch()

    def _recovered(self, name: str, at: float, back: float, limit: float) -> Recovery:
        """Wait until all is as wanted; what is timed began at ``back``."""
        mine: float | None = None
        missing: list[str] = []
        whole: float | None = None
        while whole is None and time.monotonic() - back < limit:
            looked = time.monotonic()
            try:
                cluster = world.look(self._stand.platform)
            except (LabError, AssertionError) as error:
                missing = [f"the API server does not answer: {error}"]
            else:
                wanted = self._churn.wanted
                missing = list(world.missing(wanted, self._churn.images(), cluster))
                if not missing:
                    mine = mine if mine is not None else looked - back
                    missing = list(world.leftovers(wanted, cluster))
                    whole = looked - back if not missing else None
                else:
                    mine = None
            if whole is None:
                self._wait(POLL)
        return Recovery(
            fault=name,
            at=round(at - self._begun, 1),
            lasted=round(back - at, 1),
            manager_seconds=round(mine, 2) if mine is not None else None,
            cluster_seconds=round(whole, 2) if whole is not None else None,
            missing=tuple(missing),
        )

    def _wait(self, seconds: float) -> None:
        """Let time pass; see to it that the manager is there."""
        deadline = time.monotonic() + seconds
        while True:
            code = self._stand.manager.process.poll()
            if code is not None:
                raise process.ProcessGoneError(f"the manager ended with {code}")
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 1.0))

    @contextmanager
    def _during(self, name: str) -> Iterator[None]:
        """Count time, requests and CPU time as those of a phase."""
        self._phase = name
        phase = self._phases.setdefault(name, Phase())
        begun, cpu = time.monotonic(), process.read(self._stand.pid).cpu_seconds
        try:
            yield
        finally:
            phase.seconds += time.monotonic() - begun
            phase.requests += self._stand.requests.read()
            if self._stand.manager.process.poll() is None:
                phase.cpu_seconds += process.read(self._stand.pid).cpu_seconds - cpu

    def _end(self) -> None:
        """End everything that this object started, and the manager in an orderly way."""
        self._churn.end()
        self._sampler.end()
        manager = self._stand.manager
        if manager.process.poll() is None:
            begun = time.monotonic()
            try:
                code = manager.stop()
            except subprocess.TimeoutExpired:
                code = -1
            seconds = time.monotonic() - begun
            say(f"the manager ended with {code} after {seconds:.1f} s")
            if code != 0:
                self._problems.append(f"the manager ended with {code} after SIGTERM")

    def _seen(self, *, interrupted: bool) -> Soak:
        log = self._stand.manager.log
        return Soak(
            seed=self._seed,
            minutes=self._minutes,
            began=self._began,
            phases=self._phases,
            acts=self._churn.acts,
            refused=self._churn.refused,
            recoveries=self._recoveries,
            samples=self._sampler.samples,
            log=read_log(log) if log.exists() else LogLines(),
            problems=self._problems,
            interrupted=interrupted,
        )


def soak(folder: Path, *, minutes: float, seed: int) -> Soak:
    """Start everything in a folder, run a soak, end everything."""
    with running(folder) as stand:
        say(f"the manager runs as {stand.pid}, its log is {stand.manager.log}")
        return Course(stand, minutes=minutes, seed=seed).run()
