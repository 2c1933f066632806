"""The credentials that a process has by itself: its login files, and its identity in a cloud.

Source: Kubernetes' order of keychains: Docker's file, Google, AWS, Azure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from controller.registry.acr import AcrIssuer
from controller.registry.credentials import Credential, CredentialSource, Keychain, read_entry
from controller.registry.dockerconfig import docker_keychain
from controller.registry.ecr import EcrIssuer
from controller.registry.gcr import GoogleIssuer
from controller.registry.identities import CloudIdentity, IdentityClient, Issuer
from controller.registry.reference import Reference

CLOUDS = ("google", "aws", "azure")


@dataclass(frozen=True, slots=True)
class GithubWorkflow:
    """The token that GitHub gives to a workflow, for GitHub's own registry.

    Attributes:
        environment: ``GITHUB_TOKEN`` and ``GITHUB_ACTOR``.
    """

    environment: Mapping[str, str]

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the workflow's token when the registry is ``ghcr.io``.

        Raises:
            AuthError: it is no token.
        """
        token = self.environment.get("GITHUB_TOKEN")
        if reference.host != "ghcr.io" or not token:
            return []
        values = {"username": self.environment.get("GITHUB_ACTOR") or "unset", "password": token}
        return [read_entry(values, origin="GITHUB_TOKEN", explicit=False)]


def ambient_keychain(
    environment: Mapping[str, str],
    home: Path,
    *,
    client: IdentityClient | None = None,
    clouds: Sequence[str] = CLOUDS,
    helpers: bool = False,
    github: bool = False,
) -> Keychain:
    """Return the credentials of the process, to be asked after those that somebody named.

    Args:
        environment: names files, services and identities.
        home: of the person or process.
        client: asks token services; None makes one without proxies.
        clouds: whose identities are used: some of ``google``, ``aws``, ``azure``.
        helpers: run the credential helpers that a login file names.
        github: use the token of a GitHub workflow.

    Returns:
        One keychain for the whole process: what clouds give is kept in it.
    """
    asking = client or IdentityClient()
    issuers: dict[str, Issuer] = {
        "google": GoogleIssuer(asking, environment, home),
        "aws": EcrIssuer(asking, environment),
        "azure": AcrIssuer(asking, environment),
    }
    sources: list[CredentialSource] = list(
        docker_keychain(environment, home, helpers=helpers).sources
    )
    sources += [CloudIdentity(issuers[name]) for name in CLOUDS if name in clouds]
    sources += [GithubWorkflow(environment)] if github else []
    return Keychain(tuple(sources))
