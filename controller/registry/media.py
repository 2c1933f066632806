"""Manifests and indexes: decoded strictly, and which image of an index is the package's. Pure.

Source: the OCI image specification ("Image Manifest", "Image Index", "Content Descriptors");
Docker's image manifest version 2, schema 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from controller.registry.failures import (
    MalformedManifest,
    RegistryUnavailable,
    UnsupportedMedia,
    printable,
)
from controller.registry.reference import is_digest
from controller.registry.wire import DEFAULT_LIMITS, Limits, exceeded

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
# One list for HEAD and GET: registries convert what the list does not name, which changes digests.
ACCEPT: Final = f"{OCI_INDEX}, {DOCKER_LIST}, {OCI_MANIFEST}, {DOCKER_MANIFEST}"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
CONFIG_TYPES: Final = frozenset(
    {"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"}
)
LAYER_ANNOTATION: Final = "io.crossplane.xpkg"
LAYER_BASE: Final = "base"

DEPTH_MAX: Final = 32
MEDIA_TYPE_MAX: Final = 255
SIZE_MAX: Final = 2**53
VAGUE_TYPES: Final = frozenset(
    {"", "application/octet-stream", "text/plain", "application/json", "binary/octet-stream"}
)
_SCHEMA_1: Final = "application/vnd.docker.distribution.manifest.v1+"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says about another piece of content.

    Attributes:
        media_type: as declared.
        digest: ``<algorithm>:<hex>``.
        size: bytes.
        annotations: names and values.
        platform: ``os/architecture[/variant]``, empty when none is declared.
        artifact_type: what an artifact is, empty when it does not say.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    artifact_type: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest whose bytes match its digest.

    Attributes:
        descriptor: of this manifest.
        raw: its exact bytes.
        layers: lowest first.
        config: of the image's configuration, which is not read.
        annotations: of the manifest.
        index_digest: of the index that it was selected from, None when there was none.
        warnings: what was doubtful about the selection.
    """

    descriptor: Descriptor
    raw: bytes
    layers: tuple[Descriptor, ...]
    config: Descriptor
    annotations: Mapping[str, str] = field(default_factory=dict)
    index_digest: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def base_layers(self) -> tuple[Descriptor, ...]:
        """The layers that are annotated as the package's own."""
        return tuple(
            layer for layer in self.layers if layer.annotations.get(LAYER_ANNOTATION) == LAYER_BASE
        )


@dataclass(frozen=True, slots=True)
class Index:
    """The entries of an index or manifest list."""

    entries: tuple[Descriptor, ...]


def digest_of(content: bytes, *, like: str = "sha256:") -> str:
    """Return the digest of some bytes, by the algorithm of another digest."""
    algorithm = like.partition(":")[0]
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def decode_manifest(
    raw: bytes, *, content_type: str, digest: str, limits: Limits = DEFAULT_LIMITS
) -> Manifest | Index:
    """Decode the bytes of a manifest or index.

    Args:
        raw: exact bytes, already compared with the digest.
        content_type: of the answer, parameters included; empty when it had none.
        digest: of the bytes.
        limits: numbers of layers and entries.

    Returns:
        An image manifest, or the entries of an index.

    Raises:
        MalformedManifest: not JSON, not of the declared type, or a field that breaks the format.
        UnsupportedMedia: Docker schema 1, or an artifact that is no image.
        LimitExceeded: too many layers or entries.
        RegistryUnavailable: a web page instead of a manifest.

    Source: the OCI image specification; the media type confusion that its version 1.0.2 forbids.
    """
    document = _document(raw, content_type)
    kind = _media_type(document, content_type)
    if kind in INDEX_TYPES:
        return Index(_descriptors(document, "manifests", limits.index_entries, "index_entries"))
    layers = _descriptors(document, "layers", limits.layers, "layers")
    config = _descriptor(document.get("config"), "config")
    descriptor = Descriptor(kind, digest, len(raw), _annotations(document, "manifest"))
    manifest = Manifest(descriptor, raw, layers, config, descriptor.annotations)
    if config.media_type not in CONFIG_TYPES and not manifest.base_layers:
        raise UnsupportedMedia(
            f"not a Crossplane package: an artifact of type {printable(config.media_type)}",
            remedy="name the image that `crossdock push` or `crossplane xpkg push` uploaded",
        )
    return manifest


def select(index: Index) -> tuple[Descriptor, str | None]:
    """Return the entry of an index that is the package, and a warning when that is a guess.

    Raises:
        MalformedManifest: no entry is an image.

    Source: Crossplane's package specification (an index with one image is used whatever its
    platform); Docker's attestation manifests, which are no images.
    """
    entries = [
        entry
        for entry in index.entries
        if entry.media_type in INDEX_TYPES | MANIFEST_TYPES and not _is_attestation(entry)
    ]
    if not entries:
        raise MalformedManifest("the index contains no image manifest")
    if len(entries) == 1:
        return entries[0], None
    for wanted in ("linux/amd64", ""):
        for entry in entries:
            if entry.platform == wanted or (wanted and entry.platform.startswith(f"{wanted}/")):
                return entry, None
    used = printable(entries[0].platform, limit=80)
    return entries[0], f"package index has no linux/amd64 manifest, using {used}"


def check_entry(found: Manifest | Index, entry: Descriptor) -> None:
    """Compare a manifest with the type that the index that named it declares.

    Raises:
        MalformedManifest: it is something else.
    """
    declared = entry.media_type
    if declared and (
        found.descriptor.media_type != declared
        if isinstance(found, Manifest)
        else declared not in INDEX_TYPES
    ):
        raise MalformedManifest("the index calls the manifest something else than it is")


def _is_attestation(entry: Descriptor) -> bool:
    kind = entry.annotations.get("vnd.docker.reference.type")
    return kind == "attestation-manifest" or entry.platform == "unknown/unknown"


def load_json(raw: bytes, what: str) -> Any:
    """Decode JSON that a peer sent: strict UTF-8, no duplicate keys, no floats, bounded depth.

    Raises:
        MalformedManifest: the text is anything else; ``what`` names it.
    """
    try:
        value = json.loads(
            raw.decode("utf-8", "strict"),
            object_pairs_hook=_unique,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except (ValueError, RecursionError) as error:
        fault = "too deeply nested" if isinstance(error, RecursionError) else printable(str(error))
        raise MalformedManifest(f"the {what} is not valid JSON: {fault}") from None
    if _deeper(value, DEPTH_MAX):
        raise MalformedManifest(f"the {what} is nested deeper than {DEPTH_MAX} levels")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # add() returns None on purpose
        raise ValueError(f'key "{printable(twice, limit=80)}" occurs twice')
    return result


def _no_number(text: str) -> Any:
    raise ValueError(f"{printable(text, limit=40)} is no integer")


def _deeper(value: Any, limit: int) -> bool:
    level: list[Any] = [value]
    for _ in range(limit):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _document(raw: bytes, content_type: str) -> dict[str, Any]:
    if _bare_type(content_type) == "text/html" or raw[:256].lstrip()[:1] == b"<":
        raise RegistryUnavailable(
            "the registry answered with a web page instead of a manifest",
            remedy="is a proxy or a login page in the way?",
        )
    document = load_json(raw, "manifest")
    if not isinstance(document, dict):
        raise MalformedManifest("the manifest is no JSON object")
    return document


def _bare_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _media_type(document: dict[str, Any], content_type: str) -> str:
    """Return the type of a manifest: declared by the answer, by itself and by its structure."""
    declared = _bare_type(content_type)
    own = document.get("mediaType", "")
    if not isinstance(own, str) or len(own) > MEDIA_TYPE_MAX:
        raise MalformedManifest("the manifest's mediaType is no media type")
    if declared in VAGUE_TYPES:
        declared = own
    elif own and own != declared:
        raise MalformedManifest(
            f"the manifest calls itself {printable(own, limit=120)} "
            f"and the registry calls it {printable(declared, limit=120)}"
        )
    if declared.startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise UnsupportedMedia(
            "Docker schema 1 images are not supported",
            remedy="rebuild or push the package with a current tool",
        )
    is_index, is_image = "manifests" in document, "layers" in document or "config" in document
    if (is_index and is_image) or "fsLayers" in document:
        raise MalformedManifest("the manifest is image and index at once")
    declared = declared or (OCI_INDEX if is_index else OCI_MANIFEST if is_image else "")
    if declared not in INDEX_TYPES | MANIFEST_TYPES:
        shown = printable(declared, limit=120) or "no type at all"
        raise UnsupportedMedia(f"not an image manifest: {shown}")
    if (declared in INDEX_TYPES) != is_index:
        raise MalformedManifest(f"the manifest does not have the fields of {declared}")
    if document.get("schemaVersion") != 2 or document["schemaVersion"] is True:
        raise MalformedManifest("the manifest's schemaVersion is not 2")
    return declared


def _descriptors(
    document: dict[str, Any], name: str, limit: int, flag: str
) -> tuple[Descriptor, ...]:
    entries = document.get(name)
    if not isinstance(entries, list):
        raise MalformedManifest(f"the manifest's {name} is no list")
    if len(entries) > limit:
        cause = f"the manifest has {len(entries)} {name}; at most {limit} are read"
        raise exceeded(cause, flag)
    return tuple(_descriptor(entry, f"{name}[{at}]") for at, entry in enumerate(entries))


def _descriptor(value: Any, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise MalformedManifest(f"the manifest's {where} is no descriptor")
    kind, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if not isinstance(kind, str) or not 0 < len(kind) <= MEDIA_TYPE_MAX:
        raise MalformedManifest(f"the manifest's {where}.mediaType is no media type")
    if not isinstance(digest, str) or not is_digest(digest):
        shown = printable(str(digest), limit=80)
        raise MalformedManifest(f'the manifest\'s {where}.digest "{shown}" is no supported digest')
    if type(size) is not int or not 0 <= size <= SIZE_MAX:
        shown = printable(str(size), limit=40)
        raise MalformedManifest(f'the manifest\'s {where}.size "{shown}" is no size')
    artifact = value.get("artifactType") or ""
    if not isinstance(artifact, str) or len(artifact) > MEDIA_TYPE_MAX:
        raise MalformedManifest(f"the manifest's {where}.artifactType is no media type")
    annotations, platform = _annotations(value, where), _platform(value, where)
    return Descriptor(kind, digest, size, annotations, platform, artifact)


def _annotations(value: dict[str, Any], where: str) -> dict[str, str]:
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, dict) or not _all_text(annotations.values()):
        raise MalformedManifest(f"the manifest's {where}.annotations are not names and texts")
    return annotations


def _platform(value: dict[str, Any], where: str) -> str:
    platform = value.get("platform")
    if platform is None:
        return ""
    if not isinstance(platform, dict):
        raise MalformedManifest(f"the manifest's {where}.platform is no object")
    parts = [platform.get(name) or "" for name in ("os", "architecture", "variant")]
    if not _all_text(parts):
        raise MalformedManifest(f"the manifest's {where}.platform is not made of texts")
    return "/".join(parts).strip("/")


def _all_text(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
