"""Churn: people and strangers who create, upgrade, label, delete and edit, one act after the other.

An act that the API server does not take is tried again until it does, so that what is wanted is
always known.
"""

from __future__ import annotations

import base64
import json
import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from controller.model.objects import CRD, DEPLOYMENT, PACKAGES, SECRET, SERVICE, Resource
from tests.integration.harness import MERGE, NAMESPACE, Platform
from tests.lab.errors import LabError
from tests.soak import world
from tests.soak.world import BASE, CHURNED, COMPOSITION, LABEL, NEEDED, VERSIONS, Slot, Wanted

JSON_PATCH = "application/json-patch+json"
PAUSES = (0.2, 1.8)  # seconds between two acts
RETRY = 0.5  # seconds until an act is tried again
GONE = (404, 409, 422)  # what a stranger's act met has changed meanwhile

Body = dict[str, Any] | list[dict[str, Any]] | None


class StoppedError(Exception):
    """The soak ends."""


class Churn(threading.Thread):
    """Changes the cluster while it is let.

    Attributes:
        wanted: what each package should be, None for not there.
        acts: how often each act was done.
        refused: requests that the API server did not answer or could not take.
    """

    def __init__(self, platform: Platform, seed: int) -> None:
        super().__init__(name="churn", daemon=True)
        self.wanted: dict[Slot, Wanted | None] = dict.fromkeys(CHURNED)
        self.wanted |= dict.fromkeys((BASE, *NEEDED), Wanted(1, ""))
        self.acts: Counter[str] = Counter()
        self.refused = 0
        self.failure = ""
        self._platform = platform
        self._random = random.Random(seed)
        self._let = threading.Event()
        self._ended = threading.Event()
        self._acting = threading.Lock()
        self._labels = 0

    def install(self) -> None:
        """Create every package."""
        for slot in CHURNED:
            self._create(slot)
        self._put(BASE, Wanted(1, ""))

    def touch(self) -> None:
        """Change every package, so that what was missing once is not missing for ever."""
        for slot in CHURNED:
            self._label(slot)

    def go(self) -> None:
        """Let changes happen."""
        self._let.set()

    def pause(self) -> None:
        """Let no change happen; return when the last one is done."""
        self._let.clear()
        with self._acting:
            pass

    def end(self) -> None:
        """End for good."""
        self._ended.set()
        self._let.set()

    def images(self) -> dict[Slot, str]:
        """Return the reference of each wanted package's image."""
        found = self.wanted.items()
        return {s: world.image(self._platform, s, want.version) for s, want in found if want}

    def run(self) -> None:
        """Do one act after the other while it is let."""
        acts = self._weighted()
        try:
            while not self._ended.is_set():
                self._let.wait()
                with self._acting:
                    if self._let.is_set() and not self._ended.is_set():
                        self._random.choice(acts)(self._random.choice(CHURNED))
                self._ended.wait(self._random.uniform(*PAUSES))
        except StoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - the report tells it
            self.failure = repr(error)

    def _weighted(self) -> list[Callable[[Slot], None]]:
        weights = {
            self._upgrade: 6,
            self._create_or_delete: 3,
            self._label: 3,
            self._edit_object: 4,
            self._delete_object: 2,
            self._strip_object: 2,
            self._edit_deployment: 2,
            self._delete_deployment: 1,
            self._delete_service: 1,
            self._delete_secret: 2,
            self._break_secret: 1,
        }
        return [act for act, weight in weights.items() for _ in range(weight)]

    # ---- what people do ----------------------------------------------------------------------

    def _create_or_delete(self, slot: Slot) -> None:
        if self.wanted[slot] is None:
            self._create(slot)
        else:
            self._count("delete a package")
            self.wanted[slot] = None
            self._send("DELETE", PACKAGES[slot.kind].path(slot.name))

    def _create(self, slot: Slot) -> None:
        self._count("create a package")
        self._put(slot, Wanted(self._random.choice(VERSIONS), self._next_label()))

    def _upgrade(self, slot: Slot) -> None:
        want = self.wanted[slot]
        if want is None:
            self._create(slot)
            return
        self._count("change a version")
        version = self._random.choice([each for each in VERSIONS if each != want.version])
        self._put(slot, Wanted(version, want.label))

    def _label(self, slot: Slot) -> None:
        want = self.wanted[slot]
        if want is not None:
            self._count("change a label")
            self._put(slot, Wanted(want.version, self._next_label()))

    def _put(self, slot: Slot, want: Wanted) -> None:
        """Create a package, or change it."""
        self.wanted[slot] = want
        resource = PACKAGES[slot.kind]
        reference = world.image(self._platform, slot, want.version)
        spec: dict[str, Any] = {"package": reference}
        if want.label:
            spec["commonLabels"] = {LABEL: want.label}
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": slot.name},
            "spec": spec,
        }
        while True:
            patched = self._send("PATCH", resource.path(slot.name), {"spec": spec}, kind=MERGE)
            if patched == 200 or self._send("POST", resource.path(), body) == 201:
                return
            self._wait()

    # ---- what strangers do -------------------------------------------------------------------

    def _edit_object(self, slot: Slot) -> None:
        found = self._an_object(slot)
        if found is None:
            return
        resource, name = found
        self._count(f"edit a {resource.kind}")
        path = "/spec/compositeTypeRef/kind"
        if resource == CRD:
            path = "/spec/versions/0/schema/openAPIV3Schema/description"
        change = [{"op": "replace", "path": path, "value": "Foreign"}]
        self._send("PATCH", resource.path(name), change, kind=JSON_PATCH)

    def _delete_object(self, slot: Slot) -> None:
        found = self._an_object(slot)
        if found is not None:
            self._count(f"delete a {found[0].kind}")
            self._send("DELETE", found[0].path(found[1]))

    def _strip_object(self, slot: Slot) -> None:
        found = self._an_object(slot)
        if found is None:
            return
        field = self._random.choice(("labels", "ownerReferences"))
        self._count(f"strip {field}")
        change = {"metadata": {field: None}}
        self._send("PATCH", found[0].path(found[1]), change, kind=MERGE)

    def _an_object(self, slot: Slot) -> tuple[Resource, str] | None:
        want = self.wanted[slot]
        if want is None or slot.kind == "Function":
            return None
        if slot.kind == "Configuration":
            return COMPOSITION, slot.name
        return CRD, self._random.choice(slot.definitions(want.version))

    def _edit_deployment(self, slot: Slot) -> None:
        path = "/spec/template/spec/containers/0/image"
        change = [{"op": "replace", "path": path, "value": "foreign.example.org/other:v1"}]
        for name in self._deployments(slot):
            self._count("edit a Deployment")
            where = DEPLOYMENT.path(name, namespace=NAMESPACE)
            self._send("PATCH", where, change, kind=JSON_PATCH)

    def _delete_deployment(self, slot: Slot) -> None:
        for name in self._deployments(slot):
            self._count("delete a Deployment")
            self._send("DELETE", DEPLOYMENT.path(name, namespace=NAMESPACE))

    def _deployments(self, slot: Slot) -> list[str]:
        if self.wanted[slot] is None or not slot.runs:
            return []
        status, found = self._request("GET", DEPLOYMENT.path(namespace=NAMESPACE))
        names = [item["metadata"]["name"] for item in found["items"]] if status == 200 else []
        return [name for name in names if name.startswith(f"{slot.name}-")]

    def _delete_service(self, slot: Slot) -> None:
        if self.wanted[slot] is not None and slot.runs:
            self._count("delete a Service")
            self._send("DELETE", SERVICE.path(slot.name, namespace=NAMESPACE))

    def _delete_secret(self, slot: Slot) -> None:
        if self.wanted[slot] is not None and slot.runs:
            self._count("delete a Secret")
            self._send("DELETE", SECRET.path(f"{slot.name}-tls-server", namespace=NAMESPACE))

    def _break_secret(self, slot: Slot) -> None:
        if self.wanted[slot] is not None and slot.runs:
            self._count("break a Secret")
            change = {"data": {"tls.crt": base64.b64encode(b"broken").decode()}}
            where = SECRET.path(f"{slot.name}-tls-server", namespace=NAMESPACE)
            self._send("PATCH", where, change, kind=MERGE)

    # ---- requests ----------------------------------------------------------------------------

    def _count(self, act: str) -> None:
        self.acts[act] += 1

    def _next_label(self) -> str:
        self._labels += 1
        return f"n{self._labels}"

    def _send(
        self, method: str, path: str, body: Body = None, *, kind: str = "application/json"
    ) -> int:
        return self._request(method, path, body, kind=kind)[0]

    def _request(
        self, method: str, path: str, body: Body = None, *, kind: str = "application/json"
    ) -> tuple[int, Any]:
        """Send a request until the API server has an opinion of it.

        Raises:
            StoppedError: the soak ended before.
        """
        content = json.dumps(body).encode() if body is not None else None
        while True:
            try:
                status, answer = self._platform.api.request(
                    method, path, content, content_type=kind
                )
            except LabError:
                status, answer = 0, None
            if 200 <= status < 300 or status in GONE:
                return status, answer
            self.refused += 1
            self._wait()

    def _wait(self) -> None:
        if self._ended.wait(RETRY):
            raise StoppedError
