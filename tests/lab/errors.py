"""Errors of the lab: each message says what is wrong and what to do about it."""

from __future__ import annotations


class LabError(RuntimeError):
    """The lab cannot do what it was asked."""


class StopRequestedError(LabError):
    """The lab was asked to stop."""

    def __init__(self) -> None:
        super().__init__("the lab is stopping")


class ComponentError(LabError):
    """A component ended by itself or did not become ready.

    Its message holds the component's name, its exit code and the last lines of its log.
    """

    def __init__(self, component: str, *, code: int | None, log: str) -> None:
        end = "did not become ready in time" if code is None else f"ended with {_meaning(code)}"
        shown = "\n".join(f"    {line}" for line in log.splitlines()) or "    (its log is empty)"
        super().__init__(f"{component} {end}; the last lines of its log:\n{shown}")
        self.component = component
        self.code = code
        self.log = log

    @property
    def port_taken(self) -> bool:
        """Whether another program listened on a port of the component."""
        return "address already in use" in self.log


def _meaning(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
