"""Image: the JSON documents of a package image: configuration, manifest and archive index.

Source: OCI image specification (configuration, manifest); Docker image specification v1.2 (the
``manifest.json`` of ``docker save``); Crossplane's xpkg specification (labels and annotations).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

MEDIA_TYPE_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_INDEX: Final = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_SUFFIXES: Final = {"gzip": "+gzip", "zstd": "+zstd", "plain": ""}

DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
_DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
INDEX_TYPES: Final = frozenset({MEDIA_TYPE_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({MEDIA_TYPE_MANIFEST, DOCKER_MANIFEST})
_DOCKER_TYPES: Final = {
    MEDIA_TYPE_CONFIG: "application/vnd.docker.container.image.v1+json",
    MEDIA_TYPE_LAYER: _DOCKER_LAYER,
    f"{MEDIA_TYPE_LAYER}+gzip": f"{_DOCKER_LAYER}.gzip",
}

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


def config_bytes(
    layers: Iterable[tuple[str, str, str]], runtime: Mapping[str, Any] | None = None
) -> bytes:
    """Return the configuration of a package image.

    Args:
        layers: of each layer of the package the digest of its stored bytes, the digest of its plain
            bytes and what it is for the package (``base``, ``upbound``).
        runtime: the configuration of the image that the layers are put upon; None for no image.

    Returns:
        Canonical JSON: equal for equal layers and runtime.
    """
    stored = list(layers)
    config: dict[str, Any] = dict(runtime or _EMPTY_CONFIG)
    below = config.get("rootfs") or {}
    settings = dict(config.get("config") or {})
    labels = {
        name: value
        for name, value in (settings.get("Labels") or {}).items()
        if not name.startswith(f"{LAYER_LABEL}:")  # of a package that the runtime image is as well
    }
    labels |= {f"{LAYER_LABEL}:{digest}": role for digest, _, role in stored}
    settings["Labels"] = dict(sorted(labels.items()))
    added = [{"created": _ZERO_TIME} for _ in stored]
    config["history"] = [*(config.get("history") or ()), *added]
    plain = [diff_id for _, diff_id, _ in stored]
    config["rootfs"] = {"type": "layers", "diff_ids": [*(below.get("diff_ids") or ()), *plain]}
    config.pop("config", None)
    return orjson.dumps({**config, "config": settings})


_EMPTY_CONFIG: Final[Mapping[str, Any]] = {
    "architecture": "",
    "created": _ZERO_TIME,
    "history": [],
    "os": "",
    "rootfs": None,
}


def archive_index(config_name: str, layer_names: Iterable[str]) -> bytes:
    """Return the ``manifest.json`` of an archive with one untagged image."""
    index = [{"Config": config_name, "RepoTags": None, "Layers": list(layer_names)}]
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


def docker_manifest(config: Blob, layers: Iterable[Blob]) -> PushManifest:
    """Return the manifest of an image with Docker's media types, as the reference builder has it.

    Raises:
        KeyError: a layer is compressed in a way that Docker's manifests have no type for.

    Source: Docker image manifest version 2, schema 2; field order of its first implementation.
    """
    raw = orjson.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": _docker_descriptor(config),
            "layers": [_docker_descriptor(layer) for layer in layers],
        }
    )
    return PushManifest(raw, digest_of(raw), DOCKER_MANIFEST)


def _docker_descriptor(blob: Blob) -> dict[str, Any]:
    media_type = _DOCKER_TYPES.get(blob.media_type, blob.media_type)
    if not media_type.startswith("application/vnd.docker."):
        raise KeyError(media_type)
    described = _descriptor(replace(blob, media_type=media_type))
    return {"mediaType": described.pop("mediaType"), "size": described.pop("size"), **described}


def annotated(manifest: PushManifest, annotations: Mapping[str, str]) -> PushManifest:
    """Return a manifest or index with more annotations of its own; fields are kept as they are."""
    if not annotations:
        return manifest
    document = orjson.loads(manifest.raw)
    document["annotations"] = dict(
        sorted({**(document.get("annotations") or {}), **annotations}.items())
    )
    raw = orjson.dumps(document)
    return PushManifest(raw, digest_of(raw), manifest.media_type)


def with_layer_annotations(manifest: PushManifest, layers: Sequence[Blob]) -> PushManifest:
    """Return a stored manifest whose layers have their annotations, unchanged where they do."""
    document = orjson.loads(manifest.raw)
    changed = False
    for described, blob in zip(document["layers"], layers, strict=True):
        if blob.annotations and described.get("annotations") != dict(blob.annotations):
            described["annotations"] = dict(sorted(blob.annotations.items()))
            changed = True
    if not changed:
        return manifest
    raw = orjson.dumps(document)
    return PushManifest(raw, digest_of(raw), manifest.media_type)


def push_index(
    images: Iterable[tuple[PushManifest, Mapping[str, str]]], *, docker: bool = False
) -> PushManifest:
    """Return the index of images, each with its platform, which is left out where it is empty."""
    entries = []
    for manifest, platform in images:
        entry: dict[str, Any] = {
            "mediaType": manifest.media_type,
            "digest": manifest.digest,
            "size": len(manifest.raw),
        }
        if platform:
            entry["platform"] = dict(platform)
        entries.append(entry)
    media_type = DOCKER_LIST if docker else MEDIA_TYPE_INDEX
    raw = orjson.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries})
    return PushManifest(raw, digest_of(raw), media_type)


def platform_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the platform that a configuration states, empty when it states none."""
    names = ("architecture", "os", "os.version", "variant")
    found = {name: value for name in names if isinstance(value := config.get(name), str) and value}
    return found if "architecture" in found and "os" in found else {}


def platform_text(platform: Mapping[str, Any]) -> str:
    """Return ``os/architecture[/variant]``, empty when there is none."""
    parts = (platform.get(name) for name in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if isinstance(part, str) and part)


def layer_annotations(labels: Mapping[str, str], digest: str) -> dict[str, str]:
    """Return the annotations that a layer gets at push time, from the configuration's labels."""
    role = labels.get(f"{LAYER_LABEL}:{digest}")
    return {LAYER_LABEL: role} if isinstance(role, str) else {}
