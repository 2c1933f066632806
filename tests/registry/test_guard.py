import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.registry.guard import (
    InsecureHosts,
    Reach,
    Verdict,
    farthest,
    is_loopback_host,
    judge,
    parse_address,
    reach_of,
)


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("93.184.216.34", Reach.PUBLIC),
        ("2606:2800:220:1::1", Reach.PUBLIC),
        ("10.0.0.1", Reach.PRIVATE),
        ("172.16.5.4", Reach.PRIVATE),
        ("192.168.1.1", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd12::1", Reach.PRIVATE),
        ("127.0.0.1", Reach.LOOPBACK),
        ("127.8.9.10", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("169.254.169.254", Reach.FORBIDDEN),
        ("169.254.1.1", Reach.FORBIDDEN),
        ("fe80::1", Reach.FORBIDDEN),
        ("fd00:ec2::254", Reach.FORBIDDEN),
        ("100.100.100.200", Reach.FORBIDDEN),
        ("168.63.129.16", Reach.FORBIDDEN),
        ("0.0.0.0", Reach.FORBIDDEN),
        ("::", Reach.FORBIDDEN),
        ("224.0.0.1", Reach.FORBIDDEN),
        ("ff02::1", Reach.FORBIDDEN),
        ("255.255.255.255", Reach.FORBIDDEN),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("::ffff:169.254.169.254", Reach.FORBIDDEN),
        ("::ffff:10.0.0.1", Reach.PRIVATE),
        ("64:ff9b::a9fe:a9fe", Reach.FORBIDDEN),
        ("64:ff9b::5db8:d822", Reach.PUBLIC),
        ("2002:7f00:1::", Reach.LOOPBACK),
    ],
)
def test_addresses_are_sorted_by_reach(text, reach):
    assert reach_of(ipaddress.ip_address(text)) is reach


@pytest.mark.parametrize(
    ("target", "registry", "policy", "verdict"),
    [
        (Reach.PUBLIC, Reach.PUBLIC, "strict", Verdict.ALLOW),
        (Reach.PRIVATE, Reach.PUBLIC, "warn", Verdict.WARN),
        (Reach.PRIVATE, Reach.PUBLIC, "strict", Verdict.REFUSE),
        (Reach.PRIVATE, Reach.PRIVATE, "strict", Verdict.ALLOW),
        (Reach.PRIVATE, Reach.LOOPBACK, "strict", Verdict.ALLOW),
        (Reach.LOOPBACK, Reach.LOOPBACK, "strict", Verdict.ALLOW),
        (Reach.LOOPBACK, Reach.PRIVATE, "warn", Verdict.REFUSE),
        (Reach.LOOPBACK, Reach.PUBLIC, "warn", Verdict.REFUSE),
        (Reach.FORBIDDEN, Reach.LOOPBACK, "warn", Verdict.REFUSE),
        (Reach.FORBIDDEN, Reach.PRIVATE, "warn", Verdict.REFUSE),
    ],
)
def test_hosts_are_judged_by_who_names_them(target, registry, policy, verdict):
    assert judge(target, registry=registry, policy=policy) is verdict


@given(st.ip_addresses())
def test_every_address_has_a_reach_and_link_local_never_a_way(address):
    reach = reach_of(address)
    if address.is_link_local:
        assert judge(reach, registry=Reach.LOOPBACK, policy="warn") is Verdict.REFUSE


def test_one_bad_address_condemns_a_name():
    assert farthest([Reach.PUBLIC, Reach.LOOPBACK]) is Reach.LOOPBACK
    assert farthest([Reach.PRIVATE, Reach.FORBIDDEN]) is Reach.FORBIDDEN
    assert farthest([Reach.PUBLIC]) is Reach.PUBLIC


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("reg.localhost", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
        ("notlocalhost", False),
    ],
)
def test_loopback_is_known_by_name_and_address(host, loopback):
    assert is_loopback_host(host) is loopback


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:5000", True),
        ("localhost:5000", True),
        ("[::1]:5000", True),
        ("reg.internal:5000", True),
        ("REG.internal:5000", True),
        ("reg.internal", False),
        ("reg.internal:5001", False),
        ("plain.internal", True),
        ("10.1.2.3:5000", True),
        ("10.2.2.3:5000", False),
        ("192.168.0.1", False),
        ("reg.io", False),
    ],
)
def test_plain_http_is_for_loopback_and_named_hosts(host, allowed):
    hosts = InsecureHosts.of(["reg.internal:5000", "plain.internal", "10.1.0.0/16"])
    assert hosts.allow_http(host) is allowed


def test_names_are_no_addresses():
    assert parse_address("reg.io") is None
    assert parse_address("[::1]") == ipaddress.ip_address("::1")
