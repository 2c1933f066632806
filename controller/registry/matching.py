"""Which key of a pull secret or a login file is for which repository. Pure.

Source: Kubernetes' credential provider ("pre-pulled images and registry keys"); Go's
``path/filepath`` patterns.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from controller.registry.failures import printable
from controller.registry.reference import DEFAULT_REGISTRY, HUB_NAMES, Reference

_SPECIAL = frozenset("*?[\\")


def normalise_key(key: str) -> str:
    """Return a key of ``auths`` as ``host[:port][/path]``.

    The scheme and a leading ``/v1`` or ``/v2`` path go; Docker Hub's names become one.

    Source: Kubernetes' credential provider; Docker's ``https://index.docker.io/v1/``.
    """
    text = key if key.startswith(("http://", "https://")) else f"https://{key}"
    try:
        parts = urlsplit(text)
    except ValueError:
        return key
    path = parts.path
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    host = DEFAULT_REGISTRY if parts.netloc.lower() in HUB_NAMES else parts.netloc.lower()
    return host if path in ("", "/") else f"{host}{path}"


def shown_key(key: str) -> str:
    """Return a key for people: bounded, and without a user name and password before a host."""
    return printable(key.rpartition("@")[2], limit=120)


def matches(key: str, reference: Reference) -> bool:
    """Tell whether a normalised key is for a reference.

    Equal ports (as text), as many host labels, each label matching its pattern (``*``, ``?``,
    ``[a-z]``, never across a dot), and a path that the repository's path starts with.

    Source: Kubernetes' credential provider.
    """
    host, slash, path = key.partition("/")
    wanted, wanted_port = _host_and_port(host)
    actual, actual_port = _host_and_port(reference.registry.lower())
    if wanted_port != actual_port or not f"/{reference.repository}".startswith(f"{slash}{path}"):
        return False
    patterns, labels = wanted.split("."), actual.split(".")
    return len(patterns) == len(labels) and all(
        _label_matches(pattern, label) for pattern, label in zip(patterns, labels, strict=True)
    )


def _host_and_port(text: str) -> tuple[str, str]:
    """Split a port off, as text; the brackets of an IPv6 address stay."""
    head, colon, port = text.rpartition(":")
    has_port = colon and port.isascii() and port.isdecimal() and not text.endswith("]")
    return (head, port) if has_port else (text, "")


def _label_matches(pattern: str, label: str) -> bool:
    if pattern == label:
        return True
    if _SPECIAL.isdisjoint(pattern):
        return False
    regex = _glob(pattern)
    return regex is not None and regex.fullmatch(label) is not None


def _glob(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern of Go's ``path/filepath`` as a regular expression; None when malformed."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        at += 1
        if character == "[":
            found = _character_class(pattern, at)
            if found is None:
                return None
            text, at = found
            parts.append(text)
        elif character == "*":
            # Runs of "*" are one: repeated ones would only make matching slow.
            parts += [] if parts and parts[-1] == ".*" else [".*"]
        elif character == "?":
            parts.append(".")
        else:
            single = _single(pattern, at - 1)
            if single is None:
                return None
            literal, at = single
            parts.append(re.escape(literal))
    return re.compile("".join(parts))


def _character_class(pattern: str, at: int) -> tuple[str, int] | None:
    """Read ``a-z]`` or ``^a-z]``; return it as a regular expression, and where it ends."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while not (ranges and pattern.startswith("]", at)):
        low = None if pattern.startswith(("-", "]"), at) else _single(pattern, at)
        high = low
        if low is not None and pattern.startswith("-", low[1]):
            at = low[1] + 1
            high = None if pattern.startswith(("-", "]"), at) else _single(pattern, at)
        if low is None or high is None:
            return None
        at = high[1]
        # A range that is the wrong way round is valid, and holds nothing.
        is_range = low[0] <= high[0]
        ranges.append(f"{re.escape(low[0])}-{re.escape(high[0])}" if is_range else "")
    inner = "".join(ranges)
    if not inner:
        return (".", at + 1) if negated else (r"(?!)", at + 1)
    return f"[{'^' if negated else ''}{inner}]", at + 1


def _single(pattern: str, at: int) -> tuple[str, int] | None:
    """Read one character, which a backslash may stand before; return it and where it ends."""
    at += pattern.startswith("\\", at)
    return (pattern[at], at + 1) if at < len(pattern) else None
