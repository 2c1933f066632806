"""Image: the JSON documents of a package image: configuration, manifest and archive index.

Source: OCI image specification (configuration, manifest); Docker image specification v1.2 (the
``manifest.json`` of ``docker save``); Crossplane's xpkg specification (labels and annotations).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

MEDIA_TYPE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_SUFFIXES: Final = {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}

LAYER_LABEL: Final = "io.crossplane.xpkg"

_ZERO_TIME: Final = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob of an image.

    Attributes:
        digest: ``sha256:<64 hex>`` of the bytes as stored.
        size: of them.
        media_type: for the manifest that is pushed.
        annotations: for its descriptor there.
    """

    digest: str
    size: int
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def hex(self) -> str:
        """The digest without its algorithm."""
        return self.digest.removeprefix("sha256:")


@dataclass(frozen=True, slots=True)
class PushManifest:
    """A manifest as a registry will hold it."""

    raw: bytes
    digest: str
    media_type: str = MEDIA_TYPE_MANIFEST


def digest_of(data: bytes) -> str:
    """Return ``sha256:<64 hex>`` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_bytes(layers: Iterable[tuple[str, str, str]]) -> bytes:
    """Return the configuration of a package image.

    Args:
        layers: of each layer the digest of its stored bytes, the digest of its plain bytes and
            what it is for the package (``base``, ``upbound``).

    Returns:
        Canonical JSON: equal for equal layers.
    """
    stored = list(layers)
    return orjson.dumps(
        {
            "architecture": "",
            "created": _ZERO_TIME,
            "history": [{"created": _ZERO_TIME} for _ in stored],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [plain for _, plain, _ in stored]},
            "config": {
                "Labels": dict(
                    sorted((f"{LAYER_LABEL}:{digest}", role) for digest, _, role in stored)
                )
            },
        }
    )


def archive_index(config: Blob, layer_names: Iterable[str]) -> bytes:
    """Return the ``manifest.json`` of an archive with one untagged image."""
    index = [{"Config": config.digest, "RepoTags": None, "Layers": list(layer_names)}]
    return orjson.dumps(index)


def push_manifest(config: Blob, layers: Iterable[Blob]) -> PushManifest:
    """Return the manifest of an image, with the annotations that its layers carry.

    Returns:
        Canonical JSON, so that the digest is known before the push.
    """
    raw = orjson.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "config": _descriptor(config),
            "layers": [_descriptor(layer) for layer in layers],
        }
    )
    return PushManifest(raw, digest_of(raw))


def _descriptor(blob: Blob) -> dict[str, Any]:
    descriptor: dict[str, Any] = {
        "mediaType": blob.media_type,
        "digest": blob.digest,
        "size": blob.size,
    }
    if blob.annotations:
        descriptor["annotations"] = dict(sorted(blob.annotations.items()))
    return descriptor


def layer_annotations(labels: Mapping[str, str], digest: str) -> dict[str, str]:
    """Return the annotations that a layer gets at push time, from the configuration's labels."""
    role = labels.get(f"{LAYER_LABEL}:{digest}")
    return {LAYER_LABEL: role} if isinstance(role, str) else {}
