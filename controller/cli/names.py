"""The words that people type: kinds, names of packages, durations, addresses.

All pure; what is wrong raises ``UsageError`` with the words that would be right.

Source: Kubernetes' object names and label values; Go's ``time.ParseDuration``; the validation rule
of ``spec.package`` in Crossplane's package kinds.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from controller.cli.session import CommandError, UsageError
from controller.model.objects import PACKAGES, PKG_GROUP, Resource, dns_label

if TYPE_CHECKING:
    from controller.registry.reference import Reference

KIND_WORDS: dict[str, Resource] = {kind.lower(): PACKAGES[kind] for kind in sorted(PACKAGES)}
KINDS_TEXT = ", ".join(f'"{word}"' for word in KIND_WORDS)

NAME_MAX = 63
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_INSTALLABLE = re.compile(r"[^\./]+(\.[^\./]+)+(/[^/:@]+)+(:[^:@]+(@sha256.+)?|@sha256.+)")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PORT_MAX = 65535
_SIZE = re.compile(r"(\d+)(k|M|G|T|Ki|Mi|Gi|Ti)?", re.ASCII)
_UNITS: dict[str, int] = {"": 1, **{unit: 1000 ** (n + 1) for n, unit in enumerate("kMGT")}}
_UNITS.update({f"{unit}i": 1024 ** (n + 1) for n, unit in enumerate("KMGT")})


def find_kind(word: str) -> Resource | None:
    """Return the package kind that a word means, None for any other word.

    Takes what kubectl takes: any case, the plural, and the group with or without a version
    (``providers.pkg.crossplane.io``, ``provider.v1.pkg.crossplane.io``).
    """
    text, _, rest = word.lower().partition(".")
    if rest not in {"", PKG_GROUP, f"v1.{PKG_GROUP}"}:
        return None
    return KIND_WORDS.get(text) or KIND_WORDS.get(text.removesuffix("s"))


def kind_named(word: str) -> Resource:
    """Return the package kind that a word means.

    Raises:
        UsageError: it means none.
    """
    resource = find_kind(word)
    if resource is None:
        raise UsageError(f'expected one of {KINDS_TEXT} but got "{word}"')
    return resource


def full_name(resource: Resource, name: str) -> str:
    """Return ``<kind>.<group>/<name>`` as kubectl prints and takes it."""
    group = f".{resource.group}" if resource.group else ""
    return f"{resource.kind.lower()}{group}/{name}"


def check_name(name: str) -> str:
    """Return a package's name when it is legal.

    Raises:
        UsageError: it is no DNS subdomain, or longer than a label value may be; every revision
            carries the name in a label.
    """
    if len(name) > NAME_MAX:
        raise UsageError(
            f'the name "{name}" has {len(name)} characters; a package\'s name may have '
            f"{NAME_MAX} at most, because its revisions carry it in a label: give a shorter NAME"
        )
    if not _NAME.fullmatch(name):
        raise UsageError(
            f'"{name}" is no legal object name: use lower case letters, digits, "-" and ".", '
            "beginning and ending with a letter or digit"
        )
    return name


def default_name(reference: Reference) -> str:
    """Return the name of a package object that nobody named: its repository as a DNS label.

    Packages that are installed as dependencies are named by the same rule, so one source gets one
    name.

    Raises:
        UsageError: nothing usable is left of the repository's characters.

    Source: Crossplane's ToDNSLabel of the repository path.
    """
    name = dns_label(reference.repository)
    if not name:
        raise UsageError(f'no name follows from "{reference.original}": give a NAME after it')
    return check_name(name)


def installable(text: str) -> Reference:
    """Return the reference that a text is, when the API server takes it as ``spec.package``.

    Raises:
        UsageError: it does not; the text names the missing part.
    """
    from controller.registry.failures import InvalidReference  # noqa: PLC0415 - loads no client
    from controller.registry.reference import parse_reference  # noqa: PLC0415 - as above

    if not _INSTALLABLE.fullmatch(text):
        raise UsageError(_missing_part(text))
    try:
        return parse_reference(text)
    except InvalidReference as error:
        raise UsageError(f"invalid package image identifier: {error}") from error


def _missing_part(text: str) -> str:
    """Return what keeps a text from being the image of a package."""
    host, _, rest = text.partition("/")
    example = "for example registry.example.com/repo/package:v1.0.0"
    if not rest:
        return f'"{text}" names no registry: write registry/repository:tag, {example}'
    if "." not in host:
        local = " (for a registry on this machine: 127.0.0.1:5000)" if "localhost" in host else ""
        return (
            f'"{host}" in "{text}" is no registry that Crossplane\'s API accepts: '
            f"the host needs a dot{local}, {example}"
        )
    return f'"{text}" names neither a tag nor a sha256 digest: add one, {example}'


def duration(text: str) -> float:
    """Return the seconds of a duration such as ``5m``, ``90s`` or ``1h30m``.

    Raises:
        UsageError: it is none, or negative.
    """
    if text == "0":
        return 0.0
    total, end = 0.0, 0
    for part in _DURATION.finditer(text):
        if part.start() != end:
            break
        total += float(part[1]) * _SECONDS[part[2]]
        end = part.end()
    if not text or end != len(text):
        raise UsageError(f'"{text}" is no duration: write for example 90s, 5m or 1h30m')
    return total


def quantity(text: str, flag: str) -> int:
    """Return the bytes of a size: ``20Mi``, ``1G``, ``500``.

    Raises:
        UsageError: it is none.

    Source: Kubernetes' resource quantities.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise UsageError(f'{flag}: expected a size such as 20Mi but got "{text}"')
    unit: str = match[2] or ""
    return int(match[1]) * _UNITS[unit]


def duration_text(seconds: float) -> str:
    """Return seconds as people read them: ``45s``, ``2m5s``, ``1h3m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g}s" if seconds < 10 else f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if minutes else f"{hours}h"


def address(text: str, flag: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT``; ``none`` means no listener and gives None.

    An empty host means all interfaces; port 0 any free port; IPv6 hosts stand in brackets.

    Raises:
        UsageError: it is no address.
    """
    if text == "none":
        return None
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _PORT_MAX:
        raise UsageError(f'{flag}: expected HOST:PORT or "none" but got "{text}"')
    return host or "0.0.0.0", int(port)  # noqa: S104 - an empty host asks for all interfaces


def split_list(values: list[str]) -> tuple[str, ...]:
    """Return the elements of a flag that is repeatable and takes comma lists."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def read_failure(error: OSError, what: str, path: object) -> CommandError:
    """Return what to tell about a file that cannot be used."""
    return CommandError(f"{what} {path}: {(error.strerror or str(error)).lower()}")
