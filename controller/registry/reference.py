"""References to images: their grammar, canonical form and parts. Pure.

Source: the OCI distribution specification ("Pulling manifests"); the reference grammar that Docker
and Crossplane share.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from controller.registry.failures import InvalidReference, printable

__all__ = [
    "DEFAULT_REGISTRY",
    "HUB_NAMES",
    "InvalidReference",
    "Reference",
    "is_digest",
    "is_tag",
    "parse_reference",
    "split_host_port",
]

DEFAULT_REGISTRY = "index.docker.io"
HUB_NAMES = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io"})
HUB_HOST = "registry-1.docker.io"

TEXT_MAX = 1024
PATH_MAX = 255
HOST_MAX = 253
PORT_MAX = 65535

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_PATH = re.compile(r"(?:[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/(?!\Z)|\Z))+", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}", re.ASCII)
_IMAGE_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)


def is_digest(text: str) -> bool:
    """Tell whether a text is a sha256 or sha512 digest in lower-case hexadecimal."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Tell whether a text is a tag."""
    return _TAG.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Reference:
    """One image: where it is and which of its versions.

    Attributes:
        original: the text it was parsed from.
        registry: canonical host with port as written; Docker Hub is ``index.docker.io``.
        repository: path inside the registry.
        tag: None when the reference names none.
        digest: ``<algorithm>:<hex>``, None when the reference names none.
    """

    original: str
    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def source(self) -> str:
        """The repository with its registry, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def identifier(self) -> str:
        """The digest where there is one, else the tag."""
        return self.digest or self.tag or ""

    @property
    def host(self) -> str:
        """The host and port that serve the registry's API, in lower case."""
        return HUB_HOST if self.registry == DEFAULT_REGISTRY else self.registry.lower()

    def with_digest(self, digest: str) -> Reference:
        """Return the same repository and tag, pinned to a digest.

        Raises:
            InvalidReference: the text is no digest.
        """
        if not is_digest(digest):
            raise _invalid(f"{self.source}@{digest}", _digest_fault(digest))
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.source}{tag}{digest}"


def parse_reference(
    text: str, *, strict: bool = True, default_registry: str = DEFAULT_REGISTRY
) -> Reference:
    """Return the image that a text names.

    Args:
        text: ``[host[:port]/]path[:tag][@digest]``.
        strict: the registry must be named by a host with a dot, and a tag or digest given, as
            Crossplane's package API asks; otherwise a missing registry is the default one and a
            missing tag and digest mean ``latest``.
        default_registry: the registry of a text that names none.

    Returns:
        The parts in canonical form.

    Raises:
        InvalidReference: the text does not follow the grammar; the error names the part.

    Source: Docker's reference grammar; the CEL rule of Crossplane's ``spec.package``.
    """
    if not text or len(text) > TEXT_MAX:
        raise _invalid(text, "it is empty" if not text else f"longer than {TEXT_MAX} characters")
    name, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise _invalid(text, _digest_fault(digest))
    name, tag = _split_tag(text, name)
    host, path = _split_host(name)
    if strict and (host is None or "." not in host):
        raise _invalid(text, "the registry must be named in full, by a host with a dot")
    if strict and tag is None and not digest:
        raise _invalid(text, "a tag or a digest is needed")
    registry = _canonical_host(text, default_registry if host is None else host)
    if registry == DEFAULT_REGISTRY and "/" not in path and path:
        if _IMAGE_ID.fullmatch(path):
            raise _invalid(text, "64 hexadecimal characters are an image id, not a name")
        path = f"library/{path}"
    _check_path(text, path)
    if tag is None and not digest:
        tag = "latest"
    return Reference(text, registry, path, tag, digest or None)


def split_host_port(text: str) -> tuple[str, int | None]:
    """Return the host, without the brackets of an IPv6 address, and the port.

    Args:
        text: ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``; anything else is returned as a
            host without port.
    """
    head, colon, port = text.rpartition(":")
    if colon and port.isdecimal() and port.isascii() and (":" not in head or head.endswith("]")):
        return _without_brackets(head), int(port)
    return _without_brackets(text), None


def _without_brackets(host: str) -> str:
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _split_tag(text: str, name: str) -> tuple[str, str | None]:
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        return name, None
    if not is_tag(tag):
        raise _invalid(text, f'"{printable(tag, limit=140)}" is no tag')
    return head, tag


def _split_host(name: str) -> tuple[str | None, str]:
    first, slash, rest = name.partition("/")
    looks_like_host = "." in first or ":" in first or first == "localhost" or first != first.lower()
    return (first, rest) if slash and looks_like_host else (None, name)


def _canonical_host(text: str, host: str) -> str:
    bare, port = split_host_port(host)
    if host.startswith("["):
        if "]" not in host or not _is_ipv6(bare) or host not in (f"[{bare}]", f"[{bare}]:{port}"):
            raise _invalid(text, f'"{printable(host, limit=280)}" is no IPv6 address in brackets')
    elif len(bare) > HOST_MAX or not _HOST.fullmatch(bare):
        raise _invalid(text, f'"{printable(host, limit=280)}" is no host')
    if port is not None and not 0 < port <= PORT_MAX:
        raise _invalid(text, f"port {port} does not exist")
    return DEFAULT_REGISTRY if host.lower() in HUB_NAMES else host


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.IPv6Address(text).scope_id is None
    except ValueError:
        return False


def _check_path(text: str, path: str) -> None:
    if not path:
        raise _invalid(text, "the repository is missing")
    if len(path) > PATH_MAX:
        raise _invalid(text, f"the repository is longer than {PATH_MAX} characters")
    if not _PATH.fullmatch(path):
        raise _invalid(text, f'"{printable(path, limit=280)}" is no repository path')


def _digest_fault(digest: str) -> str:
    algorithm = digest.partition(":")[0]
    if algorithm not in ("sha256", "sha512"):
        return f'"{printable(algorithm, limit=40)}" is no supported digest algorithm'
    length = 64 if algorithm == "sha256" else 128
    return f"the digest must be {algorithm}: and {length} lower-case hexadecimal characters"


def _invalid(text: str, fault: str) -> InvalidReference:
    shown = printable(text, limit=300)
    remedy = "expected registry/repository:tag or registry/repository@sha256:digest"
    return InvalidReference(f"could not parse reference: {shown}: {fault}", remedy=remedy)
