"""The report of a soak: what was done, what it did to the manager, and whether that is well."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.bench.results import RESULTS, table
from tests.soak.samples import Sample, Trend, growth

RECOVERY_LIMIT = 180.0  # seconds until all is as wanted again
DESCRIPTORS_MORE = 10  # of the last third's median over the first third's
MEMORY_SHARE, MEMORY_MORE = 0.15, 20.0  # as above: of the first, and MiB; both
LINES_SHOWN = 12
FIGURES = {
    "RSS MiB": lambda s: s.rss_mib,
    "descriptors": lambda s: s.descriptors,
    "threads": lambda s: s.threads,
}


@dataclass(frozen=True, slots=True)
class Recovery:
    """A fault, and how long until all was as wanted again.

    Attributes:
        at: seconds since the start of the soak.
        lasted: seconds.
        manager_seconds: from its end until the manager had done its part; None: not in time.
        cluster_seconds: until what is unwanted was gone as well, which Kubernetes does.
        missing: what was not as wanted when time was up.
    """

    fault: str
    at: float
    lasted: float
    manager_seconds: float | None
    cluster_seconds: float | None
    missing: tuple[str, ...] = ()


@dataclass
class Phase:
    """What went on at one kind of time."""

    seconds: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    cpu_seconds: float = 0.0

    @property
    def requests_per_minute(self) -> float:
        """Requests of the manager per minute."""
        return self.requests.total() / self.seconds * 60 if self.seconds else 0.0

    @property
    def cpu_percent(self) -> float:
        """CPU time of the manager, of one core."""
        return self.cpu_seconds / self.seconds * 100 if self.seconds else 0.0


@dataclass
class LogLines:
    """What the manager's log holds."""

    levels: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    warnings: Counter[str] = field(default_factory=Counter)
    tracebacks: Counter[str] = field(default_factory=Counter)


@dataclass
class Soak:
    """Everything that was seen."""

    seed: int
    minutes: float
    began: str
    phases: dict[str, Phase]
    acts: Mapping[str, int]
    refused: int
    recoveries: list[Recovery]
    samples: list[Sample]
    log: LogLines
    problems: list[str]
    interrupted: bool = False


def read_log(path: Path) -> LogLines:
    """Sort the lines of the manager's log; those of one text count together."""
    found = LogLines()
    for line in path.read_text(errors="replace").splitlines():
        try:
            entry: Any = json.loads(line)
            level, event = str(entry["level"]), str(entry["event"])
        except (ValueError, KeyError, TypeError):
            entry, level, event = {}, "no JSON", line[:200]
        found.levels[level] += 1
        said = f"{event}: {entry['error']}" if "error" in entry else event
        if "Traceback (most recent call last)" in line or "exception" in entry:
            found.tracebacks[said] += 1
        elif level in {"error", "critical", "no JSON"}:
            found.errors[said] += 1
        elif level == "warning":
            found.warnings[event] += 1
    return found


def judge(soak: Soak) -> list[str]:
    """Say what is not all right; nothing when all is."""
    found = list(soak.problems)
    for recovery in soak.recoveries:
        if recovery.cluster_seconds is None:
            shown = "; ".join(recovery.missing[:3])
            found.append(
                f"not as wanted {RECOVERY_LIMIT:.0f} s after {recovery.fault!r}"
                f" at {recovery.at:.0f} s: {shown}"
            )
    memory, descriptors = (growth(soak.samples, FIGURES[n]) for n in ("RSS MiB", "descriptors"))
    if memory is not None and grows(memory):
        more = memory.last_third - memory.first_third
        found.append(f"memory grew by {more:.1f} MiB from {memory.first_third:.1f} MiB")
    if descriptors is not None:
        more = descriptors.last_third - descriptors.first_third
        if more > DESCRIPTORS_MORE:
            found.append(f"{more:.0f} more descriptors than the {descriptors.first_third:.0f}")
    found += [f"a traceback in the log: {text}" for text in soak.log.tracebacks]
    return found


def grows(memory: Trend) -> bool:
    """Tell whether memory grew by more than a share of what it was, and by more than noise."""
    more = memory.last_third - memory.first_third
    return more > MEMORY_MORE and more > MEMORY_SHARE * memory.first_third


def write(soak: Soak) -> tuple[str, Path]:
    """Keep the report as JSON under bench-results; return it as text, and the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"soak-{soak.began}.json"
    content = {
        **_fields(soak),
        "verdict": judge(soak),
        "trends": {n: growth(soak.samples, f) for n, f in FIGURES.items()},
        "recoveries_by_fault": by_fault(soak.recoveries),
    }
    path.write_text(json.dumps(content, indent=1, default=_fields) + "\n")
    return text(soak), path


def text(soak: Soak) -> str:
    """Return the report for people."""
    minutes = sum(phase.seconds for phase in soak.phases.values()) / 60
    ended = ", interrupted" if soak.interrupted else ""
    changes = f"changes: {sum(soak.acts.values())} ({_counted(soak.acts)})"
    parts = [
        f"soak of {minutes:.1f} min, seed {soak.seed}{ended}",
        f"{changes}; {soak.refused} of their requests had to be repeated",
        f"faults: {len(soak.recoveries)}",
    ]
    if soak.recoveries:
        parts.append(table(by_fault(soak.recoveries)))
    parts.append(table([_phase(name, phase) for name, phase in soak.phases.items()]))
    parts.append(_trends(soak.samples))
    parts.append(_loop(soak.samples))
    parts.append(_log(soak.log))
    verdict = judge(soak)
    parts.append("\n".join(f"FAILED: {line}" for line in verdict) or "all is well")
    return "\n\n".join(part for part in parts if part)


def by_fault(recoveries: Iterable[Recovery]) -> list[dict[str, Any]]:
    """Return, for each kind of fault and for all, how long it took to be as wanted again."""
    groups: dict[str, list[Recovery]] = {}
    for recovery in recoveries:
        groups.setdefault(recovery.fault, []).append(recovery)
    if len(groups) > 1:
        groups["all"] = [each for group in groups.values() for each in group]
    rows = []
    for name, group in groups.items():
        mine = [r.manager_seconds for r in group if r.manager_seconds is not None]
        whole = [r.cluster_seconds for r in group if r.cluster_seconds is not None]
        rows.append(
            {
                "fault": name,
                "times": len(group),
                "never": len(group) - len(whole),
                "manager p50 s": percentile(mine, 0.5),
                "manager max s": percentile(mine, 1.0),
                "cluster p50 s": percentile(whole, 0.5),
                "cluster max s": percentile(whole, 1.0),
            }
        )
    return rows


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that a share of all does not exceed; None of none."""
    if not values:
        return None
    return round(sorted(values)[max(0, math.ceil(share * len(values)) - 1)], 2)


def _phase(name: str, phase: Phase) -> dict[str, Any]:
    return {
        "time of": name,
        "minutes": round(phase.seconds / 60, 2),
        "requests per minute": round(phase.requests_per_minute, 1),
        "CPU % of a core": round(phase.cpu_percent, 2),
        "most requests": _counted(phase.requests, 4),
    }


def _trends(samples: Sequence[Sample]) -> str:
    rows = []
    for name, figure in FIGURES.items():
        found = growth(samples, figure)
        if found is not None:
            rows.append({"figure": name, **asdict(found)})
    return table(rows) if rows else "too few samples for a trend"


def _loop(samples: Sequence[Sample]) -> str:
    """Tell how late the event loop was, and how full the queues were."""
    found = [s for s in samples if s.lag_samples]
    silent = sum(s.requests is None for s in samples)
    unready = sum(s.ready is False for s in samples)
    lines = [f"samples: {len(samples)}; metrics silent at {silent}, not ready at {unready}"]
    if found and found[-1].lag_samples and found[-1].lag_seconds is not None:
        mean = found[-1].lag_seconds / found[-1].lag_samples * 1000
        lines.append(
            f"event loop: {mean:.2f} ms late on average, at worst under {found[-1].lag_worst} s"
        )
    depths = [s.depth for s in samples if s.depth is not None]
    if depths:
        mean = statistics.fmean(depths)
        lines.append(f"keys ready in all queues: {mean:.2f} on average, at most {max(depths)}")
    return "\n".join(lines)


def _log(log: LogLines) -> str:
    lines = [f"log lines by level: {_counted(log.levels)}"]
    for title, found in (
        ("warnings", log.warnings),
        ("errors", log.errors),
        ("tracebacks", log.tracebacks),
    ):
        if found:
            lines.append(f"{title}:")
            lines += [f"  {n:5d}  {said[:300]}" for said, n in found.most_common(LINES_SHOWN)]
    return "\n".join(lines)


def _counted(found: Mapping[str, int], most: int | None = None) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(found).most_common(most))


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields of a data class as they are: ``asdict`` cannot copy a Counter."""
    return {each.name: getattr(value, each.name) for each in fields(value)}
