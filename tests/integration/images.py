"""Images that no builder would make: pushed to a registry byte by byte, with plain HTTP."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def push_image(registry: str, repository: str, tag: str, files: Mapping[str, bytes] | None) -> str:
    """Push an image with one layer of files, or none at all; return its digest."""
    layers = [_layer(files)] if files is not None else []
    diff_ids = [f"sha256:{hashlib.sha256(gzip.decompress(layer)).hexdigest()}" for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put_blob(registry, repository, config, CONFIG),
        "layers": [_put_blob(registry, repository, layer, LAYER) for layer in layers],
    }
    body = json.dumps(manifest).encode()
    path = f"/v2/{repository}/manifests/{tag}"
    _request(registry, "PUT", path, body, {"Content-Type": MANIFEST})
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _layer(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(stream.getvalue(), mtime=0)


def _put_blob(registry: str, repository: str, content: bytes, media_type: str) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    headers = _request(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"", {})
    location = headers["Location"]
    separator = "&" if "?" in location else "?"
    path = f"{location.partition(registry)[2] or location}{separator}digest={digest}"
    _request(registry, "PUT", path, content, {"Content-Type": "application/octet-stream"})
    return {"mediaType": media_type, "digest": digest, "size": len(content)}


def _request(
    registry: str, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> Mapping[str, str]:
    host, _, port = registry.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status < 300, (method, path, answer.status, content)
        return dict(answer.getheaders())
    finally:
        connection.close()
