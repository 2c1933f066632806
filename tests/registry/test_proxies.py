import pytest

from controller.registry.proxies import DIRECT, Proxies

ENV = {"HTTPS_PROXY": "http://proxy:3128", "HTTP_PROXY": "plain:80", "no_proxy": ""}


@pytest.mark.parametrize(
    ("bypass", "host", "port", "direct"),
    [
        ("", "reg.io", None, False),
        ("*", "reg.io", None, True),
        ("reg.io", "reg.io", None, True),
        ("reg.io", "sub.reg.io", None, True),
        ("reg.io", "otherreg.io", None, False),
        (".reg.io", "sub.reg.io", None, True),
        (".reg.io", "reg.io", None, False),
        ("*.reg.io", "sub.reg.io", None, True),
        ("REG.io", "reg.io", None, True),
        ("reg.io:8443", "reg.io", 8443, True),
        ("reg.io:8443", "reg.io", None, False),
        ("reg.io:443", "reg.io", None, True),
        ("10.0.0.0/8", "10.9.8.7", None, True),
        ("10.0.0.0/8", "11.0.0.1", None, False),
        ("10.0.0.0/8", "reg.io", None, False),
        ("fd00::/8", "fd12::1", None, True),
        ("10.1.2.3", "10.1.2.3", 5000, True),
        ("10.1.2.3:5000", "10.1.2.3", 5001, False),
        ("a, .svc ,.cluster.local,10.96.0.0/12", "reg.default.svc", None, True),
        ("not/a/network", "reg.io", None, False),
        ("", "localhost", 5000, True),
        ("", "127.0.0.1", 5000, True),
    ],
)
def test_hosts_without_a_proxy(bypass, host, port, direct):
    proxies = Proxies.from_environment({**ENV, "NO_PROXY": bypass})
    assert (proxies.select("https", host, port) is None) is direct


def test_each_scheme_has_its_proxy():
    proxies = Proxies.from_environment(ENV)
    assert proxies.select("https", "reg.io", None) == "http://proxy:3128"
    assert proxies.select("http", "reg.io", None) == "http://plain:80"
    assert Proxies.from_environment({}).select("https", "reg.io", None) is None
    assert DIRECT.select("https", "reg.io", None) is None


def test_one_variable_may_stand_for_both_and_lower_case_wins():
    env = {"ALL_PROXY": "http://all:1", "https_proxy": "http://low:2", "HTTPS_PROXY": "http://up:3"}
    proxies = Proxies.from_environment(env)
    assert (proxies.http, proxies.https) == ("http://all:1", "http://low:2")
