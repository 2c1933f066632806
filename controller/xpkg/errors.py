"""Errors of reading and writing packages."""

from __future__ import annotations


class XpkgError(Exception):
    """A package cannot be read or made; the message says where, why and what to do."""


class MalformedPackage(XpkgError):  # noqa: N818 - named for what is the matter
    """The bytes are no package: damaged, contradictory or beyond a limit. Its author must act.

    Attributes:
        remedy: what the author can do.
    """

    remedy = "build the package again"


class PackageNotFound(XpkgError):  # noqa: N818 - named for what is the matter
    """There is no package where one was looked for."""


class LimitExceeded(MalformedPackage):
    """The content is larger than what is read of a package."""

    remedy = "make the package smaller, or split it"


class BuildError(XpkgError):
    """A folder cannot be made into a package.

    Attributes:
        faults: what is wrong, one text each, with file and document where they are known.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults
