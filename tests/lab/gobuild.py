"""Go builds: make binaries from pinned modules, once per machine, whole or not at all."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.errors import LabError
from tests.lab.processes import die_with_parent

if TYPE_CHECKING:
    from collections.abc import Iterator

BUILD_SECONDS = 3600
REPORT_SECONDS = 30.0
LOCK_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Target:
    """One program: its file name, its Go package and the linker values that name its version."""

    name: str
    package: str
    stamps: Mapping[str, str] = field(default_factory=dict)


def build(
    targets: Sequence[Target],
    *,
    module: Path,
    folder: Path,
    environment: Mapping[str, str],
    announce: Callable[[str], None],
    count: tuple[int, int] = (0, 0),
) -> dict[str, Path]:
    """Build what is not yet in the folder; another builder of the same folder is waited for.

    Args:
        targets: the programs to build.
        module: folder with go.mod and go.sum; neither is changed.
        folder: cache folder; the programs go into its ``bin``.
        environment: variables of the Go command.
        announce: called with one line of progress at a time.
        count: programs done before these and programs in all, for the progress lines.

    Returns:
        The path of each program.

    Raises:
        LabError: the build failed or took too long; the message holds Go's last lines.
    """
    done, total = count
    programs = folder / "bin"
    programs.mkdir(parents=True, exist_ok=True)
    found = {target.name: programs / target.name for target in targets}
    with _turn(folder / "lock", announce):
        for left in programs.glob(".*.tmp"):  # of a builder that was killed: none runs now
            left.unlink()
        for number, target in enumerate(targets, start=done + 1):
            path = found[target.name]
            if not path.exists():
                say = _speaker(
                    f"building {target.name} ({number} of {total or len(targets)})", announce
                )
                _build_one(target, module=module, path=path, environment=environment, say=say)
    return found


def _speaker(label: str, announce: Callable[[str], None]) -> Callable[[str], None]:
    return lambda text: announce(f"{label}: {text}")


def _build_one(
    target: Target,
    *,
    module: Path,
    path: Path,
    environment: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    messages = path.with_name(f".{path.name}.{os.getpid()}.log")
    stamps = " ".join(f"-X {name}={value}" for name, value in target.stamps.items())
    command = ["go", "build", "-mod=readonly", "-trimpath", f"-ldflags=-s -w {stamps}"]
    command += ["-o", str(temporary), target.package]
    # A workspace or flags of the user must not change what go.sum pins.
    variables = {**environment, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false"}
    begin = time.monotonic()
    say("this is done once and takes minutes")
    try:
        with messages.open("wb") as log:
            code = _run(
                command,
                folder=module,
                environment=variables,
                log=log.fileno(),
                tick=lambda: say(f"{time.monotonic() - begin:.0f} s"),
            )
        if code != 0:
            last = "\n".join(messages.read_text(errors="replace").splitlines()[-15:])
            raise LabError(f"building {path.name} failed (go exit code {code}):\n{last}")
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        messages.unlink(missing_ok=True)
    say(f"done in {time.monotonic() - begin:.0f} s")


def _run(
    command: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: int,
    tick: Callable[[], None],
) -> int:
    with subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=die_with_parent(signal.SIGINT),  # noqa: PLW1509 - the lab runs no threads
    ) as process:
        try:
            deadline = time.monotonic() + BUILD_SECONDS
            while time.monotonic() < deadline:
                try:
                    return process.wait(timeout=REPORT_SECONDS)
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if process.poll() is None:  # too late or interrupted
                os.killpg(process.pid, signal.SIGINT)
    raise LabError(f"{' '.join(command)} took longer than {BUILD_SECONDS} s: ended")


@contextmanager
def _turn(path: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Hold the builders' lock of one folder; the kernel drops it with the process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        waiting = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    announce(f"waiting for another builder ({path})")
                    waiting = True
                if time.monotonic() > deadline:
                    message = f"another builder has held {path} for {LOCK_SECONDS} s: end it"
                    raise LabError(message) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
