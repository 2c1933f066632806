"""``trace``: a package, its revisions and what it depends on, as a tree."""

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from controller.cli.dependencies import Node, Shown, Snapshot, package_tree
from controller.cli.flags import Context, Given, Kubeconfig, Output
from controller.cli.list import read_all
from controller.cli.names import KIND_WORDS, full_name, kind_named
from controller.cli.output import check_output, print_document
from controller.cli.render import MISSING, Branch, table, tree
from controller.cli.session import DONE, CommandError, UsageError
from controller.cli.view import (
    package_status,
    revision_health,
    revision_status,
    status_text,
    version_of,
)
from controller.model.conditions import HEALTHY, INSTALLED, conditions_of
from controller.model.objects import LOCK, REVISIONS, JsonObject, Resource, name_of

if TYPE_CHECKING:
    from controller.cli.session import Session

COLUMNS = ("NAME", "VERSION", "INSTALLED", "HEALTHY", "STATE", "STATUS")
WIDE_COLUMNS = ("NAME", "PACKAGE", *COLUMNS[1:])


async def trace(
    kind: Annotated[str, Parameter(name="KIND")],
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    output: Output = "default",
    show_package_dependencies: Annotated[
        Literal["unique", "all", "none"], Parameter(metavar="unique|all|none")
    ] = "unique",
    show_package_revisions: Annotated[
        Literal["active", "all", "none"], Parameter(metavar="active|all|none")
    ] = "active",
    kubeconfig: Kubeconfig = None,
    context: Annotated[Context, Parameter(alias="-c")] = None,
    session: Given,
) -> int:
    """Show a package with its revisions and dependencies as a tree.

    Args:
        kind: "configuration", "function" or "provider"; KIND/NAME in one word is taken too.
        name: the package; without it all packages of the kind.
        output: "default", "wide" (with package references and whole messages) or "json".
        show_package_dependencies: each dependency once, wherever it is needed, or not at all.
        show_package_revisions: the active ones, all of them, or none.
        kubeconfig: the file that says how to reach the cluster.
        context: its context.
        session: the world outside.

    Returns:
        The exit code.
    """
    check_output(output)
    resource, name = split_target(kind, name)
    shown = Shown(dependencies=show_package_dependencies, revisions=show_package_revisions)
    async with session.cluster(kubeconfig, context) as client:
        found = await read_all(client, [*KIND_WORDS.values(), *REVISIONS.values(), LOCK])
    snapshot = Snapshot.of(found)
    roots = [p for p in snapshot.packages if p["kind"] == resource.kind]
    if name is not None:
        roots = [p for p in roots if name_of(p) == name]
    if name is not None and not roots:
        raise missing(resource, name, session)
    trees = [package_tree(root, snapshot, shown) for root in roots]
    if output == "json":
        documents = [document_of(branch) for branch in trees]
        print_document(session, documents[0] if name is not None else {"items": documents})
        return DONE
    if not trees:
        session.note(f"No {resource.kind}s are installed.")
        return DONE
    for line in tree_lines(trees, wide=output == "wide"):
        session.say(line)
    return DONE


def missing(resource: Resource, name: str, session: "Session") -> CommandError:
    """Return what to tell about a package that is not there."""
    return CommandError(
        f"{full_name(resource, name)} does not exist in this cluster: '{session.program} list' "
        "shows what does, --context chooses another cluster"
    )


def split_target(kind: str, name: str | None) -> tuple[Resource, str | None]:
    """Return kind and name from ``KIND NAME`` or ``KIND/NAME``.

    Raises:
        UsageError: the kind is unknown, or two names are given.
    """
    word, slash, within = kind.partition("/")
    if slash and name is not None:
        raise UsageError(f'"{kind}" names the object already: leave out "{name}"')
    return kind_named(word), (within or None) if slash else name


def tree_lines(trees: list[Branch[Node]], *, wide: bool) -> list[str]:
    """Return the table of some trees, one below the other."""
    rows = []
    for branch in trees:
        for prefix, node in tree(branch):
            row = row_of(node, wide=wide)
            rows.append((prefix + row[0], *row[1:]))
    return table(WIDE_COLUMNS if wide else COLUMNS, rows)


def row_of(node: Node, *, wide: bool) -> tuple[str, ...]:
    """Return a node's cells; with the package's reference after the name in the wide form."""
    title = f"{node.kind}/{node.name}"
    if node.object is None:
        cells = ("", MISSING, MISSING, MISSING, node.note)
        reference = node.source
    else:
        conditions = conditions_of(node.object)
        spec = node.object["spec"]
        revision = node.object["kind"] in REVISIONS
        reference = spec.get("image" if revision else "package", "")
        status = (revision_status if revision else package_status)(node.object, short=not wide)
        cells = (
            version_of(reference),
            MISSING if revision else status_text(conditions, INSTALLED),
            revision_health(node.object) if revision else status_text(conditions, HEALTHY),
            spec.get("desiredState", MISSING) if revision else MISSING,
            status,
        )
    return (title, reference, *cells) if wide else (title, *cells)


def document_of(branch: Branch[Node]) -> JsonObject:
    """Return a tree as nested ``{object, children}``, as Crossplane's trace writes it."""
    node = branch.value
    document: JsonObject = {"object": node.object}
    if node.object is None:
        document = {
            "object": {"kind": node.kind, "metadata": {"name": node.name}},
            "error": node.note,
        }
    if branch.children:
        document["children"] = [document_of(child) for child in branch.children]
    return document
