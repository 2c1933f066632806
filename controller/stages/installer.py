"""Installing what packages depend on: one key for each missing dependency.

The resolve stage says what is missing; a dependency whose registry is slow or broken holds up
nobody else, and is tried again with a backoff of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.model.graph import Missing, choose_version, needs_tags, package_object
from controller.model.imageconfig import ImageConfigError
from controller.model.lock import DependencyError, canonical_source
from controller.model.objects import LOCK_KEY, PACKAGES, Key, name_of
from controller.registry.client import RegistryError
from controller.stages.backend import ImageBackend

KIND = "Dependency"  # of the keys; their names are canonical sources


class DependencyInstaller:
    """Creates package objects for missing dependencies.

    Args:
        client: the API server.
        backend: tells the tags of repositories.
    """

    def __init__(self, *, client: KubeClient, backend: ImageBackend) -> None:
        self._client = client
        self._backend = backend
        self._due: dict[str, Missing] = {}
        self._failures: dict[str, str] = {}

    @property
    def failures(self) -> Mapping[str, str]:
        """Why dependencies could not be installed, by canonical source."""
        return self._failures

    def want(self, due: Iterable[Missing]) -> list[Key]:
        """Note what is missing now; return the keys of what is new or wanted differently."""
        before, self._due = self._due, {need.key: need for need in due}
        self._failures = {k: text for k, text in self._failures.items() if k in self._due}
        return [Key(KIND, key) for key, need in self._due.items() if before.get(key) != need]

    async def __call__(self, key: Key) -> Outcome:
        """Create the package of one dependency, unless it is there meanwhile."""
        need = self._due.get(key.name)
        if need is None:
            return Done()
        try:
            await self._create(need)
        except (DependencyError, RegistryError, ImageConfigError, ApiError) as error:
            text = f"cannot install {need.package}, which {need.wanted_by}: {error}"
            news = self._failures.get(key.name) != text
            self._failures[key.name] = text
            after = error.retry_after if isinstance(error, RegistryError) else None
            return Again(text, after=after, next=(("resolve", LOCK_KEY),) if news else ())
        self._failures.pop(key.name, None)
        return Done(next=(("resolve", LOCK_KEY),))

    async def _create(self, need: Missing) -> None:
        tags: Sequence[str] = ()
        if needs_tags(need.constraints):
            tags = await self._backend.tags(need.package)
        version = choose_version(tags, need.constraints, source=need.package)
        package = package_object(need, version)
        resource = PACKAGES[package["kind"]]
        try:
            await self._client.create(resource, package)
        except ApiError as error:
            if not error.already_exists:
                raise
            known = await self._client.get(resource, name_of(package))
            if canonical_source(known["spec"]["package"]) != need.key:
                message = (
                    f"{resource.kind} {name_of(package)} exists with another source "
                    f"({known['spec']['package']}): create a {resource.kind} for {need.package} "
                    "under another name"
                )
                raise DependencyError(message) from error
