"""The Crossplane version that packages' constraints are checked against.

Source: Crossplane's package metadata (``spec.crossplane.version``) and its chart's version label.
"""

from __future__ import annotations

import structlog

from controller.kube.client import ApiError, KubeClient
from controller.model.objects import DEPLOYMENT, labels_of
from controller.model.semver import Version, VersionError

log = structlog.get_logger(__name__)

API_VERSION = "v2.4.0"  # the version whose API the manager implements
LABEL_VERSION = "app.kubernetes.io/version"
CROSSPLANE = "app=crossplane"


async def crossplane_version(client: KubeClient, namespace: str) -> str:
    """Return the version of the Crossplane that runs beside the manager.

    Args:
        client: the API server.
        namespace: where Crossplane would run.

    Returns:
        The version label of Crossplane's Deployment; where there is none that can be read, the
        version whose API the manager implements, and a line in the log says so.
    """
    try:
        found = await client.list(DEPLOYMENT, namespace=namespace, label_selector=CROSSPLANE)
    except ApiError as error:
        log.warning("cannot look for Crossplane's version", error=str(error), using=API_VERSION)
        return API_VERSION
    for deployment in found["items"]:
        text = labels_of(deployment).get(LABEL_VERSION, "")
        try:
            Version.parse(text)
        except VersionError:
            continue
        return text
    log.info("no Crossplane runs here: packages are checked against its API", version=API_VERSION)
    return API_VERSION
