"""Which hosts and addresses may be connected to. Pure.

A registry names other hosts: token servers, blob stores, upload locations. What it names is judged
by the addresses behind the name, relative to where the registry itself is.

Source: IANA special-purpose address registries; the metadata addresses of cloud platforms.
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from controller.registry.reference import split_host_port

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
Policy: TypeAlias = Literal["warn", "strict"]

_METADATA = frozenset(
    ipaddress.ip_address(text)
    for text in ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16")
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")


class Reach(enum.Enum):
    """From where an address can be reached."""

    PUBLIC = "public"
    PRIVATE = "private"
    LOOPBACK = "loopback"
    FORBIDDEN = "link-local or reserved"


class Verdict(enum.Enum):
    """What to do about a host that a registry named."""

    ALLOW = "allow"
    WARN = "warn"
    REFUSE = "refuse"


def parse_address(host: str) -> Address | None:
    """Return the IP address that a host is, None for a name."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def reach_of(address: Address) -> Reach:
    """Return from where an address can be reached; embedded IPv4 addresses count."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return reach_of(inner)
    if address in _METADATA or address.is_link_local or address.is_multicast:
        return Reach.FORBIDDEN
    if address.is_loopback:
        return Reach.LOOPBACK
    if address.is_unspecified or (address.version == 4 and address.is_reserved):
        return Reach.FORBIDDEN
    return Reach.PUBLIC if address.is_global else Reach.PRIVATE


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _SIX_TO_FOUR:
        return address.sixtofour
    return None


def networks_of(entries: Iterable[str]) -> tuple[Network, ...]:
    """Return address ranges and single addresses as ranges.

    Raises:
        ValueError: an entry is neither.
    """
    return tuple(ipaddress.ip_network(entry, strict=False) for entry in entries)


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    """Tell whether an address is in one of some ranges."""
    return any(address.version == network.version and address in network for network in networks)


def farthest(reaches: Iterable[Reach]) -> Reach:
    """Return the reach to judge a set of addresses by: the one that is trusted least."""
    order = (Reach.FORBIDDEN, Reach.LOOPBACK, Reach.PRIVATE)
    found = set(reaches)
    return next((reach for reach in order if reach in found), Reach.PUBLIC)


def judge(target: Reach, *, registry: Reach, policy: Policy) -> Verdict:
    """Decide whether to connect to a host that a registry named.

    Args:
        target: of the host that was named.
        registry: of the registry that named it.
        policy: ``warn`` lets a public registry name private hosts, with a warning.

    Returns:
        Link-local, metadata and reserved addresses are always refused, loopback unless the
        registry is on loopback too; private ones are allowed to private registries.
    """
    if target is Reach.PUBLIC:
        return Verdict.ALLOW
    if target is Reach.FORBIDDEN:
        return Verdict.REFUSE
    if target is Reach.LOOPBACK:
        return Verdict.ALLOW if registry is Reach.LOOPBACK else Verdict.REFUSE
    if registry in (Reach.PRIVATE, Reach.LOOPBACK):
        return Verdict.ALLOW
    return Verdict.WARN if policy == "warn" else Verdict.REFUSE


def is_loopback_host(host: str) -> bool:
    """Tell whether a host without port is this machine by its name or address."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parse_address(host)
    return address is not None and reach_of(address) is Reach.LOOPBACK


@dataclass(frozen=True, slots=True)
class InsecureHosts:
    """Registries that may be spoken to over plain HTTP.

    Attributes:
        names: exact ``host`` or ``host:port``, in lower case.
        networks: address ranges.
    """

    names: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> InsecureHosts:
        """Sort entries into names and address ranges."""
        names, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                names.add(entry.lower())
        return cls(frozenset(names), tuple(networks))

    def allow_http(self, host_port: str) -> bool:
        """Tell whether a registry may be spoken to over plain HTTP.

        Loopback always may; others by exact name, with port where they have one, or range.
        """
        host, _ = split_host_port(host_port)
        if is_loopback_host(host) or host_port.lower() in self.names:
            return True
        address = parse_address(host)
        return address is not None and is_within(address, self.networks)
