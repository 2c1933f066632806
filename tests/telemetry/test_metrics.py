"""Metrics: the names and arithmetic that dashboards know."""

import asyncio
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from controller.flow.worker import Done, Halt, Outcome, run_workers
from controller.flow.workqueue import LOW, Backoff, WorkQueue
from controller.model.objects import Key
from controller.registry.cache_statistics import CacheStatistics
from controller.telemetry import Metrics

A = Key("Provider", "a")


def samples(metrics: Metrics) -> dict[str, float]:
    """Return every sample by ``name{label=value,…}``, labels sorted."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


async def test_a_queue_shows_client_gos_figures():
    metrics = Metrics()
    queue: WorkQueue[str] = WorkQueue("image", backoff=Backoff(1, 2), metrics=metrics)
    for key in "abc":
        queue.add(key)
    await queue.get()
    queue.done(await queue.get())
    queue.add_after("d", 100)
    found = samples(metrics)
    label = "{controller=image,name=image}"
    assert found["workqueue_depth{controller=image,name=image,priority=0}"] == 1
    assert found["workqueue_depth{controller=image,name=image,priority=-100}"] == 0
    assert found[f"workqueue_adds_total{label}"] == 3
    assert found[f"workqueue_retries_total{label}"] == 1
    assert found[f"workqueue_unfinished_work_seconds{label}"] >= 0
    assert found[f"workqueue_longest_running_processor_seconds{label}"] >= 0
    assert found[f"workqueue_queue_duration_seconds_count{label}"] == 2
    assert found[f"workqueue_work_duration_seconds_count{label}"] == 1
    assert found[f"workqueue_work_duration_seconds_sum{label}"] >= 0
    buckets = [
        value
        for name, value in found.items()
        if name.startswith("workqueue_queue_duration_seconds_bucket")
    ]
    assert len(buckets) == 11
    assert buckets == sorted(buckets)
    assert (
        found["workqueue_queue_duration_seconds_bucket{controller=image,le=+Inf,name=image}"] == 2
    )


async def test_q8_the_depth_of_a_queue_is_told_by_priority():
    metrics = Metrics()
    queue: WorkQueue[str] = WorkQueue("image", backoff=Backoff(1, 2), metrics=metrics)
    for key in "abc":
        queue.add(key, priority=LOW)
    queue.add("d", priority=7)
    queue.add("a")
    found = samples(metrics)
    depths = {
        priority: found[f"workqueue_depth{{controller=image,name=image,priority={priority}}}"]
        for priority in (7, 0, -100)
    }
    assert depths == {7: 1, 0: 1, -100: 2}
    while len(queue):
        queue.done(await queue.get())
    found = samples(metrics)
    assert found["workqueue_depth{controller=image,name=image,priority=7}"] == 0


async def test_several_queues_share_the_names():
    metrics = Metrics()
    for name in ("image", "digest"):
        WorkQueue[str](name, backoff=Backoff(1, 2), metrics=metrics).add("a")
    found = samples(metrics)
    assert found["workqueue_depth{controller=image,name=image,priority=0}"] == 1
    assert found["workqueue_depth{controller=digest,name=digest,priority=0}"] == 1
    assert metrics.render().count(b"# TYPE workqueue_depth gauge") == 1


async def test_passes_show_controller_runtimes_figures():
    async def stage(key: Key) -> Outcome:
        if key.name == "bug":
            raise ZeroDivisionError
        if key.name == "slow":
            await asyncio.sleep(100)
        return Halt("you") if key.name == "halt" else Done()

    metrics = Metrics()
    queue: WorkQueue[Key] = WorkQueue("image", backoff=Backoff(100, 200), metrics=metrics)
    for name in ("a", "b", "bug", "halt", "slow"):
        queue.add(Key("Provider", name))
    queue.shut_down()
    await run_workers(
        name="image",
        queue=queue,
        stage=stage,
        count=3,
        deadline=0.01,
        hand_over=lambda _queue, _key: None,
        report=lambda _key, _stage, _report: None,
        metrics=metrics,
    )
    found = samples(metrics)
    prefix, label = "controller_runtime_", "{controller=image}"
    assert found[f"{prefix}reconcile_total{{controller=image,result=success}}"] == 2
    assert found[f"{prefix}reconcile_total{{controller=image,result=error}}"] == 3
    assert found[f"{prefix}reconcile_errors_total{label}"] == 3
    assert found[f"{prefix}terminal_reconcile_errors_total{label}"] == 1
    assert found[f"{prefix}reconcile_panics_total{label}"] == 1
    assert found[f"{prefix}reconcile_timeouts_total{label}"] == 1
    assert found[f"{prefix}reconcile_time_seconds_count{label}"] == 5
    assert found[f"{prefix}max_concurrent_reconciles{label}"] == 3
    assert found[f"{prefix}active_workers{label}"] == 0


def test_w7_all_series_of_a_stage_are_there_before_its_first_pass():
    metrics = Metrics()
    metrics.workers_started("image", 4)
    found = samples(metrics)
    for result in ("success", "error", "requeue", "requeue_after"):
        assert found[f"controller_runtime_reconcile_total{{controller=image,result={result}}}"] == 0
    for name in (
        "reconcile_errors_total",
        "terminal_reconcile_errors_total",
        "reconcile_panics_total",
        "reconcile_timeouts_total",
        "reconcile_time_seconds_count",
        "active_workers",
    ):
        assert found[f"controller_runtime_{name}{{controller=image}}"] == 0
    for name in ("hung_passes_total", "hanging_passes"):
        assert found[f"crossdock_{name}{{controller=image}}"] == 0


def test_a_cancelled_pass_frees_its_worker_and_counts_as_nothing():
    metrics = Metrics()
    metrics.workers_started("image", 1)
    metrics.pass_started("image")
    assert samples(metrics)["controller_runtime_active_workers{controller=image}"] == 1
    metrics.pass_finished("image", None, 3.0)
    found = samples(metrics)
    assert found["controller_runtime_active_workers{controller=image}"] == 0
    assert found["controller_runtime_reconcile_time_seconds_count{controller=image}"] == 0


def test_w5_a_pass_that_hangs_is_counted_and_frees_its_worker():
    metrics = Metrics()
    metrics.workers_started("image", 1)
    metrics.pass_started("image")
    metrics.pass_left("image")
    found = samples(metrics)
    assert found["crossdock_hung_passes_total{controller=image}"] == 1
    assert found["crossdock_hanging_passes{controller=image}"] == 1
    assert found["controller_runtime_active_workers{controller=image}"] == 0
    metrics.pass_returned("image")
    metrics.pass_finished("image", "error", 90.0)
    found = samples(metrics)
    assert found["crossdock_hung_passes_total{controller=image}"] == 1
    assert found["crossdock_hanging_passes{controller=image}"] == 0
    assert found["controller_runtime_active_workers{controller=image}"] == 0


def test_requests_to_the_api_server_show_client_gos_figures_and_ours():
    metrics = Metrics()
    metrics.api_host = "127.0.0.1:6443"
    observe = metrics.observe_api
    observe("list", "providers", 200, 0.02)
    observe("apply", "providers", 409, 0.01)
    observe("get", "locks", 0, 30.0)
    found = samples(metrics)
    host = "host=127.0.0.1:6443"
    assert found[f"rest_client_requests_total{{code=200,{host},method=GET}}"] == 1
    assert found[f"rest_client_requests_total{{code=409,{host},method=PATCH}}"] == 1
    assert found[f"rest_client_requests_total{{code=<error>,{host},method=GET}}"] == 1
    assert found[f"rest_client_request_duration_seconds_sum{{{host},verb=get}}"] == 30
    assert found["crossdock_api_requests_total{code=409,resource=providers,verb=apply}"] == 1


def test_requests_to_registries_are_counted():
    metrics = Metrics()
    metrics.observe_registry("xpkg.io", "HEAD", 200, 0.1)
    metrics.observe_registry("xpkg.io", "GET", 0, 5)
    found = samples(metrics)
    assert found["crossdock_registry_requests_total{code=200,registry=xpkg.io,verb=HEAD}"] == 1
    assert found["crossdock_registry_requests_total{code=<error>,registry=xpkg.io,verb=GET}"] == 1
    assert found["crossdock_registry_request_duration_seconds_count{registry=xpkg.io}"] == 2


def test_the_cache_shows_what_it_holds_and_did():
    metrics = Metrics()
    metrics.show_cache(lambda: CacheStatistics("rw", entries=2, size=10, hits=3, damaged=1))
    found = samples(metrics)
    assert found["crossdock_cache_packages{}"] == 2
    assert found["crossdock_cache_bytes{}"] == 10
    assert found["crossdock_cache_requests_total{result=hit}"] == 3
    assert found["crossdock_cache_requests_total{result=miss}"] == 0
    assert found["crossdock_cache_damaged_total{}"] == 1


def test_leadership_shows_client_gos_figures():
    metrics = Metrics()
    metrics.leader_changed("core", leading=False)
    found = samples(metrics)
    assert found["leader_election_master_status{name=core}"] == 0
    assert found["leader_election_slowpath_total{name=core}"] == 0
    metrics.leader_changed("core", leading=True)
    metrics.leader_slow_path("core")
    found = samples(metrics)
    assert found["leader_election_master_status{name=core}"] == 1
    assert found["leader_election_slowpath_total{name=core}"] == 1


def test_the_process_shows_its_memory():
    assert samples(Metrics())["process_resident_memory_bytes{}"] > 0


def test_two_sets_of_metrics_do_not_meet():
    first, second = Metrics(), Metrics()
    first.observe_registry("xpkg.io", "HEAD", 200, 0.1)
    assert not [name for name in samples(second) if name.startswith("crossdock_registry")]


async def test_the_lateness_of_the_event_loop_is_sampled(monkeypatch):
    monkeypatch.setattr("controller.telemetry.metrics._LAG_INTERVAL", 0.001)
    metrics = Metrics()
    sampler = asyncio.create_task(metrics.sample_event_loop_lag())
    await asyncio.sleep(0.05)
    sampler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sampler
    found = samples(metrics)
    assert found["crossdock_event_loop_lag_seconds_count{}"] >= 1
    assert found["crossdock_event_loop_lag_seconds_sum{}"] >= 0


def test_watches_show_their_stores_and_how_long_they_have_been_silent():
    @dataclass
    class Figures:
        objects: int = 3
        silent_seconds: float = 42.0
        handler_failures: int = 1

    metrics = Metrics()
    metrics.show_watches(lambda: {"Provider": Figures()})
    found = samples(metrics)
    assert found["crossdock_watch_objects{kind=Provider}"] == 3
    assert found["crossdock_watch_silence_seconds{kind=Provider}"] == 42
    assert found["crossdock_watch_handler_failures_total{kind=Provider}"] == 1
