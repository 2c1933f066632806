import pytest

from controller.registry.circuit import HOSTS_MAX, Circuit, Circuits, is_absence
from controller.registry.failures import NotFound, RateLimited, RegistryUnavailable, TLSError
from controller.registry.wire import Limits

AWAY = RegistryUnavailable("away", transient=True)


def opened() -> Circuit:
    circuit = Circuit("reg.io", Limits())
    for _ in range(5):
        circuit.ended(probe=circuit.admit(0.0))
        circuit.failed(AWAY, 0.0)
    return circuit


def test_failures_in_a_row_close_the_way_for_a_while():
    circuit = opened()
    with pytest.raises(
        RegistryUnavailable, match=r"failed 5 times in a row .* 30 s: away"
    ) as found:
        circuit.admit(0.0)
    assert found.value.retry_after == 30.0
    assert not found.value.transient
    assert circuit.admit(30.0)


def test_a_success_in_between_starts_the_count_anew():
    circuit = Circuit("reg.io", Limits())
    for _ in range(20):
        circuit.failed(AWAY, 0.0)
        circuit.succeeded()
        assert circuit.admit(0.0) is False


def test_one_request_finds_out():
    circuit = opened()
    assert circuit.admit(31.0) is True
    with pytest.raises(RegistryUnavailable):
        circuit.admit(31.0)
    circuit.failed(AWAY, 31.0)
    circuit.ended(probe=True)
    with pytest.raises(RegistryUnavailable):
        circuit.admit(60.0)
    assert circuit.admit(61.0) is True
    circuit.ended(probe=True)
    circuit.succeeded()
    assert circuit.admit(61.0) is False


def test_a_probe_that_tells_nothing_lets_the_next_one_pass():
    circuit = opened()
    assert circuit.admit(31.0) is True
    circuit.ended(probe=True)
    assert circuit.admit(31.0) is True


def test_pauses_are_waited_for_or_left_to_the_caller():
    circuit = Circuit("reg.io", Limits())
    assert circuit.wait(0.0) == 0.0
    circuit.pause(10.0, 0.0)
    circuit.pause(5.0, 0.0)
    assert circuit.wait(4.0) == 6.0
    assert circuit.wait(10.0) == 0.0
    with pytest.raises(RateLimited) as found:
        circuit.admit(4.0)
    assert found.value.transient
    circuit.pause(100.0, 0.0)
    with pytest.raises(RateLimited, match="asked to wait 90 s more") as found:
        circuit.wait(10.0)
    assert not found.value.transient


def test_what_counts_as_away():
    assert is_absence(AWAY)
    assert is_absence(RegistryUnavailable("x", status=503))
    assert not is_absence(RegistryUnavailable("x", status=500))
    assert not is_absence(RegistryUnavailable("x"))
    assert not is_absence(NotFound("x", status=404))
    assert not is_absence(TLSError("x"))


def test_hosts_are_forgotten():
    circuits = Circuits(Limits())
    first = circuits.of("h0")
    assert circuits.of("h0") is first
    for number in range(HOSTS_MAX + 1):
        circuits.of(f"h{number}")
    assert circuits.of("h0") is not first
