"""``install``: create a package object, and wait for it where asked."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import Context, Given, Kubeconfig, Switch
from controller.cli.names import (
    check_name,
    default_name,
    duration,
    full_name,
    installable,
    kind_named,
    split_list,
)
from controller.cli.session import DONE, CommandError, UsageError
from controller.cli.waiting import wait_for_package
from controller.model.objects import KINDS_WITH_RUNTIME, JsonObject, Resource

if TYPE_CHECKING:
    from controller.cli.session import Session
    from controller.kube.client import KubeClient

INT64_MAX = 2**63 - 1


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InstallFlags:
    """The flags of ``install`` that end in the package's spec, and how long to wait."""

    manual_activation: Annotated[Switch, Parameter(alias="-m")] = False
    """a person activates each revision, by setting its spec.desiredState"""

    revision_history_limit: Annotated[int | None, Parameter(alias="-r", metavar="N")] = None
    """how many old revisions are kept; 0 keeps all"""

    package_pull_secrets: Annotated[list[str] | None, Parameter(negative=(), metavar="NAME,…")] = (
        None
    )
    """secrets in the manager's namespace that hold registry credentials; a comma list,
    repeatable"""

    runtime_config: Annotated[str | None, Parameter(metavar="NAME")] = None
    """the DeploymentRuntimeConfig to run a provider or function with"""

    wait: Annotated[str, Parameter(alias="-w", metavar="DURATION")] = "0s"
    """how long to wait until the package is healthy, for example 5m; 0s: not at all"""


async def install(
    kind: Annotated[str, Parameter(name="KIND")],
    ref: Annotated[str, Parameter(name="REF")],
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    flags: InstallFlags = InstallFlags(),
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    session: Given,
) -> int:
    """Install a package: create its object in the cluster, for the manager to act on.

    Args:
        kind: "configuration", "function" or "provider".
        ref: the package's image, with registry, repository and tag or digest.
        name: the object's name; without it the repository with dashes for slashes.
        flags: see ``InstallFlags``.
        kubeconfig: the file that says how to reach the cluster.
        context: its context.
        session: the world outside.

    Returns:
        The exit code.
    """
    resource = kind_named(kind)
    seconds = duration(flags.wait)
    body = package_object(resource, ref, name, flags)
    async with session.cluster(kubeconfig, context) as client:
        await create_package(client, resource, body, session=session)
        if seconds > 0:
            await wait_for_package(
                client,
                resource,
                body["metadata"]["name"],
                seconds=seconds,
                manual=flags.manual_activation,
                session=session,
            )
    return DONE


def package_object(
    resource: Resource, ref: str, name: str | None, flags: InstallFlags
) -> JsonObject:
    """Return the package object that an install creates; all that can be checked is checked.

    Args:
        resource: the package's kind.
        ref: the image as typed; ``spec.package`` carries it unchanged.
        name: the object's name, None for the one that follows from the repository.
        flags: fields that were not asked for are not sent, so the API server's defaults hold.

    Raises:
        UsageError: a word that the API server would refuse, or that means something else.
    """
    reference = installable(ref)
    limit = flags.revision_history_limit
    if limit is not None and not 0 <= limit <= INT64_MAX:
        raise UsageError(f"--revision-history-limit: expected 0 or more but got {limit}")
    if flags.runtime_config is not None and resource.kind not in KINDS_WITH_RUNTIME:
        raise UsageError(
            f"package kind {resource.kind} does not support runtime configuration: "
            "leave out --runtime-config"
        )
    spec: JsonObject = {
        "package": ref,
        "revisionActivationPolicy": "Manual" if flags.manual_activation else "Automatic",
    }
    if limit is not None:
        spec["revisionHistoryLimit"] = limit
    if secrets := split_list(flags.package_pull_secrets or []):
        spec["packagePullSecrets"] = [{"name": secret} for secret in secrets]
    if flags.runtime_config is not None:
        spec["runtimeConfigRef"] = {"name": flags.runtime_config}
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": check_name(name) if name is not None else default_name(reference)},
        "spec": spec,
    }


async def create_package(
    client: "KubeClient", resource: Resource, body: JsonObject, *, session: "Session"
) -> None:
    """Create a package object and print that it was created.

    Raises:
        CommandError: it exists already; the text says how to change it instead.
        ApiError: the API server refused it.
    """
    from controller.kube.client import ApiError  # noqa: PLC0415 - loaded with the client

    name = body["metadata"]["name"]
    try:
        await client.create(resource, body)
    except ApiError as error:
        if not error.already_exists:
            raise
        present = await client.get(resource, name)
        raise CommandError(
            existing_text(resource, present, wanted=body["spec"]["package"])
        ) from error
    session.say(f"{full_name(resource, name)} created")


def existing_text(resource: Resource, present: JsonObject, *, wanted: str) -> str:
    """Return what to tell a person whose package exists already."""
    name = present["metadata"]["name"]
    package = present["spec"].get("package", "")
    start = f"cannot create {full_name(resource, name)}: it exists already with {package}"
    if package == wanted:
        return f"{start}, the very package asked for"
    patch = f'{{"spec":{{"package":"{wanted}"}}}}'
    target = full_name(resource, name)
    return (
        f"{start}; give another NAME to install it beside, or change the version with: "
        f"kubectl patch {target} --type merge -p '{patch}'"
    )
