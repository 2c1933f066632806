"""OCI layouts for tests, in memory: folders and archives are written from them."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.xpkg.image import digest_of
from tests.xpkg.tars import make_tar, member

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
META = b"apiVersion: meta.pkg.crossplane.io/v1\nkind: Function\nmetadata: {name: f}\n"


@dataclass
class Layout:
    """Files of an OCI layout."""

    files: dict[str, bytes] = field(
        default_factory=lambda: {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    )

    def blob(self, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
        """Add a blob and return its descriptor."""
        digest = digest_of(data)
        self.files[f"blobs/sha256/{digest[7:]}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def image(
        self, *plain: bytes, architecture: str = "", labels: bool = False, **more: Any
    ) -> dict[str, Any]:
        """Add an image whose first layer is the package's; return its descriptor."""
        base = {"io.crossplane.xpkg": "base"}
        layers = [
            self.blob(gzip.compress(each, mtime=0), LAYER, **({} if at else {"annotations": base}))
            for at, each in enumerate(plain)
        ]
        named = {f"io.crossplane.xpkg:{layers[0]['digest']}": "base"} if labels else {}
        config: dict[str, Any] = {
            "rootfs": {"type": "layers", "diff_ids": [digest_of(each) for each in plain]},
            "config": {"Labels": named},
        }
        if architecture:
            config |= {"os": "linux", "architecture": architecture}
            more.setdefault("platform", {"os": "linux", "architecture": architecture})
        return self.manifest(self.blob(json.dumps(config).encode(), CONFIG), layers, **more)

    def manifest(
        self, config: dict[str, Any], layers: list[dict[str, Any]], **more: Any
    ) -> dict[str, Any]:
        """Add a manifest and return its descriptor."""
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": {"org.example.kept": "yes"},
        }
        return self.blob(json.dumps(document, indent=1).encode(), MANIFEST, **more)

    def index(self, *entries: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Add an index and return its descriptor."""
        document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}
        return self.blob(json.dumps(document).encode(), INDEX, **more)

    def top(self, *entries: dict[str, Any]) -> Layout:
        """Set what ``index.json`` lists."""
        document = {"schemaVersion": 2, "manifests": list(entries)}
        self.files["index.json"] = json.dumps(document).encode()
        return self

    def archive(self, path: Path) -> Path:
        """Write the layout as an archive."""
        path.write_bytes(make_tar(*(member(name, data) for name, data in self.files.items())))
        return path

    def folder(self, path: Path) -> Path:
        """Write the layout as a folder."""
        for name, data in self.files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path


PLAIN = make_tar(member("package.yaml", META))
EMPTY = make_tar(member("other"))
