"""When a soak counts as failed, and how its figures are made."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.soak import report
from tests.soak.report import LogLines, Phase, Recovery, Soak, by_fault, judge, read_log, text
from tests.soak.samples import Sample, growth, trend

GOOD = Recovery("cut", at=10.0, lasted=2.0, manager_seconds=1.0, cluster_seconds=3.0)


def sample(at: float, rss_mib: float = 100.0, descriptors: int = 30) -> Sample:
    return Sample(at, "churn", rss_mib, descriptors, 3, at / 100, int(at))


def soak(**changes) -> Soak:
    found = Soak(
        seed=1,
        minutes=1.0,
        began="2026-01-01T00-00",
        phases={"churn": Phase(60.0, Counter({"get things": 6}), 0.6)},
        acts={"upgrade": 3},
        refused=0,
        recoveries=[GOOD],
        samples=[sample(10.0 * n) for n in range(9)],
        log=LogLines(),
        problems=[],
    )
    return replace(found, **changes)


def test_a_soak_without_a_fault_of_the_manager_is_well():
    assert judge(soak()) == []
    assert "all is well" in text(soak())


def test_what_did_not_come_back_is_a_failure_and_is_named():
    late = replace(GOOD, cluster_seconds=None, missing=("a: Healthy is False",))
    (line,) = judge(soak(recoveries=[GOOD, late]))
    assert "a: Healthy is False" in line
    assert f"FAILED: {line}" in text(soak(recoveries=[late]))


@pytest.mark.parametrize(
    ("before", "after", "fails"),
    [
        (100.0, 119.0, False),  # 19 %, but less than 20 MiB
        (100.0, 121.0, True),
        (200.0, 225.0, False),  # 25 MiB, but less than 15 %
        (200.0, 231.0, True),
        (200.0, 100.0, False),
    ],
)
def test_memory_that_grows_by_a_share_and_by_an_amount_is_a_failure(before, after, fails):
    samples = [sample(10.0 * n, rss_mib=before if n < 3 else after) for n in range(9)]
    assert bool(judge(soak(samples=samples))) is fails


@pytest.mark.parametrize(("more", "fails"), [(10, False), (11, True), (-20, False)])
def test_descriptors_that_are_not_given_back_are_a_failure(more, fails):
    samples = [sample(10.0 * n, descriptors=30 + (more if n >= 6 else 0)) for n in range(9)]
    assert bool(judge(soak(samples=samples))) is fails


def test_a_peak_in_between_is_no_growth():
    samples = [sample(10.0 * n, descriptors=90 if n == 4 else 30) for n in range(9)]
    assert judge(soak(samples=samples)) == []


def test_a_traceback_in_the_log_is_a_failure(tmp_path: Path):
    lines = [
        {"level": "info", "event": "started"},
        {"level": "warning", "event": "watch interrupted", "error": "cut"},
        {"level": "error", "event": "handler failed", "exception": "Traceback …"},
        {"level": "error", "event": "odd", "error": "why"},
    ]
    path = tmp_path / "manager.log"
    plain = "Traceback (most recent call last):"
    path.write_text("\n".join([*map(json.dumps, lines), plain]) + "\n")
    found = read_log(path)
    assert found.levels == {"info": 1, "warning": 1, "error": 2, "no JSON": 1}
    assert found.warnings == {"watch interrupted": 1}
    assert found.errors == {"odd: why": 1}
    assert found.tracebacks == {"handler failed": 1, plain: 1}
    assert len(judge(soak(log=found))) == 2


def test_problems_of_the_course_are_failures():
    assert judge(soak(problems=["the manager ended"])) == ["the manager ended"]


def test_a_report_without_samples_and_faults_can_be_written():
    assert "too few samples" in text(soak(samples=[], recoveries=[], phases={}))


def test_a_report_is_kept_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    _, path = report.write(soak(log=LogLines(levels=Counter(info=2))))
    found = json.loads(path.read_text())
    assert found["phases"]["churn"]["requests"] == {"get things": 6}
    assert found["log"]["levels"] == {"info": 2}
    assert found["trends"]["RSS MiB"]["last_third"] == 100.0
    assert found["samples"][0]["phase"] == "churn"
    assert found["verdict"] == []


def test_times_to_recover_are_told_for_each_fault_and_for_all():
    recoveries = [
        replace(GOOD, manager_seconds=float(n), cluster_seconds=float(n)) for n in range(1, 11)
    ]
    recoveries.append(Recovery("killed", 1.0, 1.0, 20.0, None, ("x",)))
    cut, killed, every = by_fault(recoveries)
    assert (cut["times"], cut["manager p50 s"], cut["manager max s"]) == (10, 5.0, 10.0)
    assert (killed["never"], killed["cluster max s"]) == (1, None)
    assert (every["times"], every["manager max s"]) == (11, 20.0)


def test_a_straight_line_has_its_slope_per_hour():
    found = trend([(float(n), 100.0 + n / 10) for n in range(0, 90, 10)])
    assert found is not None
    assert found.slope_per_hour == pytest.approx(360.0)
    assert (found.first_third, found.last_third) == (101.0, 107.0)
    assert trend([(0.0, 1.0)]) is None


def test_the_start_does_not_bend_the_line():
    samples = [sample(10.0 * n, rss_mib=50.0 if n < 3 else 100.0) for n in range(9)]
    found = growth(samples, lambda s: s.rss_mib)
    assert found is not None
    assert found.slope_per_hour == pytest.approx(0.0)
