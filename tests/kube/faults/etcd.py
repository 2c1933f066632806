"""The etcd of a lab, spoken to past its API server."""

from __future__ import annotations

import base64
import json
import urllib.request
import uuid
from pathlib import Path
from typing import Any

from tests.lab.lab import Lab

BATCH = 125  # writes of one transaction; etcd takes 128
SECONDS = 60.0


def _text(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


class Etcd:
    """Requests to etcd's JSON gateway; they block.

    Source: etcd's gRPC gateway.
    """

    def __init__(self, lab: Lab) -> None:
        arguments = Path(f"/proc/{lab.pids['etcd']}/cmdline").read_text().split("\0")
        option = "--listen-client-urls="
        self._url = next(each for each in arguments if each.startswith(option))[len(option) :]

    def compact(self) -> int:
        """Forget all but the newest state; return its revision."""
        header = self._ask("/v3/kv/range", {"key": _text("/none")})["header"]
        revision = int(header["revision"])
        self._ask("/v3/kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def put_config_maps(self, namespace: str, count: int, *, label: str, size: int) -> None:
        """Write ConfigMaps with names ``o00000`` … and ``size`` bytes of data each."""
        for first in range(0, count, BATCH):
            writes = []
            for number in range(first, min(first + BATCH, count)):
                name = f"o{number:05}"
                metadata = {
                    "name": name,
                    "namespace": namespace,
                    "uid": str(uuid.uuid4()),
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {label: "yes"},
                }
                data = {"x": f"{number:06}" * (size // 6)}
                value = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata}
                text = json.dumps({**value, "data": data})
                key = _text(f"/registry/configmaps/{namespace}/{name}")
                writes.append({"requestPut": {"key": key, "value": _text(text)}})
            self._ask("/v3/kv/txn", {"success": writes})

    def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            value: dict[str, Any] = json.load(answer)
        return value
