"""``list``: the packages of a cluster."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from controller.cli.flags import Context, Given, Kubeconfig, Output
from controller.cli.names import KIND_WORDS, kind_named
from controller.cli.output import check_output, print_document
from controller.cli.render import MISSING, age, table
from controller.cli.session import DONE
from controller.cli.view import package_status, status_text, version_of
from controller.cli.waiting import together
from controller.model.conditions import HEALTHY, INSTALLED, conditions_of
from controller.model.objects import JsonObject, Resource, name_of

if TYPE_CHECKING:
    from controller.kube.client import KubeClient

COLUMNS = ("KIND", "NAME", "INSTALLED", "HEALTHY", "VERSION", "PACKAGE", "AGE")
WIDE_COLUMNS = (*COLUMNS, "REVISION", "STATUS")


async def list_packages(
    kind: Annotated[str | None, Parameter(name="KIND")] = None,
    /,
    *,
    output: Output = "default",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    session: Given,
) -> int:
    """List the packages that are installed, and whether they are healthy.

    Args:
        kind: "configuration", "function" or "provider"; without it all three.
        output: "default", "wide" (with revision and status) or "json".
        kubeconfig: the file that says how to reach the cluster.
        context: its context.
        session: the world outside.

    Returns:
        The exit code.
    """
    check_output(output)
    resources = [kind_named(kind)] if kind else list(KIND_WORDS.values())
    async with session.cluster(kubeconfig, context) as client:
        packages = await read_all(client, resources)
    if output == "json":
        print_document(session, {"apiVersion": "v1", "kind": "List", "items": packages})
    elif not packages:
        what = f"{resources[0].kind}s" if kind else "packages"
        session.note(f"No {what} are installed.")
    else:
        columns = WIDE_COLUMNS if output == "wide" else COLUMNS
        now = session.now()
        rows = [row_of(package, now)[: len(columns)] for package in packages]
        for line in table(columns, rows):
            session.say(line)
    return DONE


async def read_all(client: "KubeClient", resources: list[Resource]) -> list[JsonObject]:
    """Return all objects of some kinds, by kind and name, each with its apiVersion and kind."""
    lists = await together(client.list(resource) for resource in resources)
    found: list[JsonObject] = []
    for resource, page in zip(resources, lists, strict=True):
        typed = {"apiVersion": resource.api_version, "kind": resource.kind}
        items = [{**typed, **item} for item in page.get("items") or ()]
        found += sorted(items, key=name_of)
    return found


def row_of(package: JsonObject, now: datetime) -> tuple[str, ...]:
    """Return a package's cells in the order of ``WIDE_COLUMNS``."""
    conditions = conditions_of(package)
    reference = package["spec"].get("package", "")
    return (
        package["kind"],
        name_of(package),
        status_text(conditions, INSTALLED),
        status_text(conditions, HEALTHY),
        version_of(reference),
        reference,
        age(package["metadata"].get("creationTimestamp", ""), now),
        (package.get("status") or {}).get("currentRevision") or MISSING,
        package_status(package),
    )
