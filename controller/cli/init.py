"""``init``: make a cluster ready for the manager; what is right already is left alone."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import (
    DEFAULT_NAMESPACE,
    DEFAULT_SERVICE_ACCOUNT,
    Context,
    Given,
    Kubeconfig,
    Namespace,
    ServiceAccount,
)
from controller.cli.names import duration, installable, split_list
from controller.cli.session import DONE
from controller.model.objects import (
    CONFIGURATION,
    DEFAULT_RUNTIME_CONFIG,
    FUNCTION,
    LOCK,
    LOCK_NAME,
    PROVIDER,
    RUNTIME_CONFIG,
    JsonObject,
    Resource,
)

if TYPE_CHECKING:
    from controller.cli.session import Session

Packages = Annotated[list[str] | None, Parameter(negative=(), metavar="REF")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class InitFlags:
    """The flags of ``init`` as they were typed."""

    namespace: Namespace = None
    service_account: ServiceAccount = None

    provider: Packages = None
    """a provider to install, or to move to this version; repeatable"""

    configuration: Packages = None
    """a configuration to install, or to move to this version; repeatable"""

    function: Packages = None
    """a function to install, or to move to this version; repeatable"""

    skip_rbac: bool | None = None
    """leave namespace, service account and roles to somebody else; the default in a pod, whose
    maker made them"""

    timeout: Annotated[str, Parameter(metavar="DURATION")] = "1m"
    """how long to wait until the new kinds are served"""

    kubeconfig: Kubeconfig = None
    context: Context = None

    def packages(self) -> list[tuple[Resource, str]]:
        """Return the first packages to install, with their kinds."""
        lists = (
            (PROVIDER, self.provider),
            (CONFIGURATION, self.configuration),
            (FUNCTION, self.function),
        )
        return [(kind, ref) for kind, refs in lists for ref in split_list(refs or [])]


async def init(*, flags: InitFlags = InitFlags(), session: Given) -> int:
    """Prepare a cluster for the manager: kinds, permissions, root CA, Lock, first packages.

    Run again it changes nothing that is right.

    Args:
        flags: see ``InitFlags``.
        session: the world outside.

    Returns:
        The exit code.
    """
    seconds = duration(flags.timeout)
    for _, ref in flags.packages():
        installable(ref)
    from controller.cli import bootstrap, shipped  # noqa: PLC0415 - they load the cluster's client

    namespace = flags.namespace or session.environ.get("POD_NAMESPACE") or DEFAULT_NAMESPACE
    account_name = (
        flags.service_account
        or session.environ.get("POD_SERVICE_ACCOUNT")
        or DEFAULT_SERVICE_ACCOUNT
    )
    folder = shipped.manifests_folder()
    definitions = [shipped.stamped(d) for d in shipped.read_folder(folder / "crds")]
    account = bootstrap.Account(session)
    async with session.cluster(flags.kubeconfig, flags.context) as client:
        await bootstrap.refuse_lost_versions(client, definitions)
        if skips_permissions(flags, session):
            session.note("namespace, service account and roles: left as they are")
        else:
            permissions = [
                shipped.stamped(
                    shipped.retargeted(d, namespace=namespace, service_account=account_name)
                )
                for d in shipped.read_folder(folder / "rbac")
            ]
            await bootstrap.apply_permissions(client, permissions, account)
        await bootstrap.apply_all(client, definitions, account)
        await bootstrap.wait_served(client, definitions, seconds=seconds, session=session)
        await bootstrap.ensure_root_ca(client, namespace, account)
        for resource, body in singletons():
            await bootstrap.ensure_present(client, shipped.Desired(resource, body), account)
        for resource, ref in flags.packages():
            await bootstrap.ensure_package(client, resource, ref, account)
        session.say(f"{client.server} is ready for crossdock in {namespace}: {account.summary()}")
    return DONE


def skips_permissions(flags: InitFlags, session: "Session") -> bool:
    """Tell whether namespace, service account and roles are left alone.

    In a pod that is told no other cluster they are: it runs as the very account that they are for,
    which may not grant itself anything.
    """
    if flags.skip_rbac is not None:
        return flags.skip_rbac
    env = session.environ
    told = flags.kubeconfig or flags.context or env.get("KUBECONFIG")
    return bool(env.get("KUBERNETES_SERVICE_HOST")) and not told


def singletons() -> list[tuple[Resource, JsonObject]]:
    """Return the objects that exist once, as they are created: Lock and runtime configuration."""
    lock = {"apiVersion": LOCK.api_version, "kind": LOCK.kind, "metadata": {"name": LOCK_NAME}}
    runtime_config = {
        "apiVersion": RUNTIME_CONFIG.api_version,
        "kind": RUNTIME_CONFIG.kind,
        "metadata": {"name": DEFAULT_RUNTIME_CONFIG},
        "spec": {},
    }
    return [(LOCK, lock), (RUNTIME_CONFIG, runtime_config)]
