"""Which proxy a request goes through, from the environment. Pure.

Source: the variables ``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY`` and ``NO_PROXY`` as Go and
Kubernetes read them, address ranges included.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from controller.registry.guard import is_loopback_host, parse_address
from controller.registry.reference import split_host_port

DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxies:
    """Proxy URLs by scheme, and the hosts that are reached without one.

    Attributes:
        http: for plain HTTP, None for none.
        https: for HTTPS, None for none.
        bypass: entries of ``NO_PROXY``: ``*``, host, ``.suffix``, address or range, each with an
            optional port.
    """

    http: str | None = None
    https: str | None = None
    bypass: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> Proxies:
        """Read the proxy variables, lower-case names first."""

        def value(name: str) -> str:
            return (env.get(name.lower()) or env.get(name) or "").strip()

        everything = value("ALL_PROXY")
        entries = (entry.strip() for entry in value("NO_PROXY").split(","))
        return cls(
            http=_with_scheme(value("HTTP_PROXY") or everything),
            https=_with_scheme(value("HTTPS_PROXY") or everything),
            bypass=tuple(entry.lower() for entry in entries if entry),
        )

    def select(self, scheme: str, host: str, port: int | None) -> str | None:
        """Return the URL of the proxy for a host, None for a direct connection.

        Args:
            scheme: ``http`` or ``https``.
            host: name or address, without brackets.
            port: None for the scheme's own.
        """
        proxy = self.https if scheme == "https" else self.http
        if proxy is None or is_loopback_host(host):
            return None
        actual = port or DEFAULT_PORTS[scheme]
        if any(_matches(entry, host.lower().rstrip("."), actual) for entry in self.bypass):
            return None
        return proxy


DIRECT = Proxies()


def _with_scheme(text: str) -> str | None:
    if not text:
        return None
    return text if "://" in text else f"http://{text}"


def _matches(entry: str, host: str, port: int) -> bool:
    if entry == "*":
        return True
    address = parse_address(host)
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
        return address is not None and address.version == network.version and address in network
    name, wanted_port = split_host_port(entry)
    if wanted_port is not None and wanted_port != port:
        return False
    listed = parse_address(name)
    if listed is not None or address is not None:
        return listed == address
    if name.startswith("*."):
        name = name[1:]
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith(f".{name}")
