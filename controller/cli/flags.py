"""The flags that several verbs share, with their names and help texts."""

from pathlib import Path
from typing import Annotated, TypeAlias

from cyclopts import Parameter

from controller.cli.session import Session

Given: TypeAlias = Annotated[Session, Parameter(parse=False)]

Kubeconfig: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name="--kubeconfig",
        metavar="FILE",
        help="the file that says how to reach the cluster; without it KUBECONFIG, "
        "~/.kube/config or, in a pod, its own account",
    ),
]
Context: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--context",
        metavar="NAME",
        help="the context of that file; without it the current one",
    ),
]
Namespace: TypeAlias = Annotated[
    str | None,
    Parameter(
        name=["--namespace", "-n"],
        metavar="NAME",
        help="the manager's namespace [POD_NAMESPACE; crossplane-system]",
    ),
]
ServiceAccount: TypeAlias = Annotated[
    str | None,
    Parameter(
        name="--service-account",
        metavar="NAME",
        help="the manager's service account in it [POD_SERVICE_ACCOUNT; crossplane]",
    ),
]
CaBundle: TypeAlias = Annotated[
    Path | None,
    Parameter(
        name="--ca-bundle-path",
        metavar="FILE",
        help="a file of certificates that registries are trusted by, beside the system's "
        "[CA_BUNDLE_PATH]",
    ),
]
InsecureRegistries: TypeAlias = Annotated[
    list[str] | None,
    Parameter(
        name="--insecure-registry",
        metavar="HOST",
        negative=(),
        help="a registry (host or host:port) that is spoken to over plain HTTP, as those on "
        "loopback always may be; repeatable",
    ),
]
Output: TypeAlias = Annotated[str, Parameter(name=["--output", "-o"], metavar="FORMAT")]
Switch: TypeAlias = Annotated[bool, Parameter(negative=())]

DEFAULT_NAMESPACE = "crossplane-system"
DEFAULT_SERVICE_ACCOUNT = "crossplane"


def from_environment(session: Session, *names: str) -> str | None:
    """Return the first variable that is set to something; None when there is none."""
    return next((value for name in names if (value := session.environ.get(name))), None)
