"""Layout: the image in an OCI layout, which is a folder or an archive, every blob of it checked.

Source: OCI image specification ("Image Layout", "Image Index", "Image Manifest").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.model.manifest import shown
from controller.xpkg import image
from controller.xpkg.contents import (
    IMAGES_MAX,
    LAYERS_MAX,
    Contents,
    as_dict,
    check_plain,
    diff_ids_of,
    hash_of,
    labels_of,
    load_json,
    parse_config,
)
from controller.xpkg.errors import LimitExceeded, MalformedPackage
from controller.xpkg.image import Blob
from controller.xpkg.locate import IMAGE_BYTES_MAX, LAYER_TYPES
from controller.xpkg.members import Member, Members

LAYOUT_FILE: Final = "oci-layout"
LAYOUT_INDEX: Final = "index.json"
DEPTH_MAX: Final = 3
DEFAULT_PLATFORM: Final = "linux/amd64"

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TAG: Final = "org.opencontainers.image.ref.name"
_KIND: Final = "vnd.docker.reference.type"


@dataclass(frozen=True, slots=True)
class _Image:
    """An image that an index lists."""

    digest: str
    size: int
    media_type: str
    platform: str
    tag: str


def is_layout(members: Members) -> bool:
    """Tell whether an OCI layout with at least one manifest of its own is there.

    Archives of ``docker save`` may be both; one whose blobs are not there is read as the other.
    """
    if LAYOUT_FILE not in members or LAYOUT_INDEX not in members:
        return False
    if "manifest.json" not in members:
        return True
    try:
        return any(_path(each.digest) in members for each in _images(members))
    except MalformedPackage:
        return False


def layout_images(members: Members) -> tuple[str, ...]:
    """Return the digest of each image, as ``index.json`` and the indexes it names list them."""
    return tuple(dict.fromkeys(each.digest for each in _images(members)))


def read_layout(members: Members, choice: str) -> Contents:
    """Read an image of a layout.

    Args:
        members: its files.
        choice: a digest, tag or platform (``os/architecture``), where there are several images;
            empty for the only one, or that of linux/amd64.

    Raises:
        MalformedPackage: what it says about its blobs is not true.
    """
    chosen = _chosen(_images(members), choice)
    raw = _blob(members, chosen.digest, chosen.size)
    document = as_dict(load_json(raw, "the manifest"))
    described = [as_dict(layer) for layer in document.get("layers") or []]
    if not isinstance(document.get("layers"), list) or len(described) > LAYERS_MAX:
        raise MalformedPackage(f"the manifest lists no layers, or more than {LAYERS_MAX}")
    config_at = as_dict(document.get("config"))
    config_raw = _blob(members, config_at.get("digest"), config_at.get("size"))
    config = _described(config_at, {})
    parsed = parse_config(config_raw)
    labels = labels_of(parsed)
    layers = tuple(_described(layer, labels) for layer in described)
    places = {blob.digest: _place(members, blob) for blob in layers}
    _check_layers(members, layers, parsed, places)
    places[config.digest] = members.find(_path(config.digest))
    stored = image.PushManifest(raw, chosen.digest, _type_of(document, chosen.media_type))
    return Contents(config, config_raw, parsed, layers, places, stored)


def _check_layers(
    members: Members,
    layers: tuple[Blob, ...],
    config: Mapping[str, Any],
    places: Mapping[str, Member],
) -> None:
    """Compare the layers of an image with its configuration; other artifacts have none."""
    if not all(blob.media_type.partition(";")[0] in LAYER_TYPES for blob in layers):
        return
    budget = IMAGE_BYTES_MAX
    for blob, diff_id in zip(layers, diff_ids_of(config, len(layers)), strict=True):
        _, size = check_plain(members, places[blob.digest], diff_id, blob.digest, budget)
        budget -= size


def _images(members: Members) -> list[_Image]:
    marker = as_dict(load_json(members.bytes_of(LAYOUT_FILE), LAYOUT_FILE))
    if marker.get("imageLayoutVersion") != "1.0.0":
        raise MalformedPackage(f"{LAYOUT_FILE} does not state version 1.0.0, which is the one read")
    found: list[_Image] = []
    for each in _listed(members, members.bytes_of(LAYOUT_INDEX), LAYOUT_INDEX, "", DEPTH_MAX):
        if len(found) >= IMAGES_MAX:
            raise LimitExceeded(f"lists more than {IMAGES_MAX} images")
        found.append(each)
    return found


def _listed(members: Members, raw: bytes, name: str, tag: str, depth: int) -> Iterator[_Image]:
    """Yield the images of an index and of the indexes in it, without attestations."""
    entries = as_dict(load_json(raw, name)).get("manifests")
    if not isinstance(entries, list) or len(entries) > IMAGES_MAX:
        raise MalformedPackage(f"{name} lists no manifests, or more than {IMAGES_MAX}")
    for entry in map(as_dict, entries):
        annotations = as_dict(entry.get("annotations"))
        platform = image.platform_text(as_dict(entry.get("platform")))
        if annotations.get(_KIND) == "attestation-manifest" or platform == "unknown/unknown":
            continue
        digest, size = _digest(entry.get("digest")), entry.get("size")
        media_type = str(entry.get("mediaType"))
        own_tag = str(annotations.get(_TAG) or tag)
        if media_type in image.INDEX_TYPES:
            if depth <= 1:
                raise MalformedPackage(f"indexes are nested deeper than {DEPTH_MAX} levels")
            yield from _listed(members, _blob(members, digest, size), digest, own_tag, depth - 1)
        elif media_type in image.MANIFEST_TYPES:
            yield _Image(digest, _size(size), media_type, platform, own_tag)


def _chosen(images: list[_Image], choice: str) -> _Image:
    """Return the image that is asked for, or the one that is meant without asking."""
    if not images:
        raise MalformedPackage("it holds no image")
    by_digest = {each.digest: each for each in images}
    if not choice and len(by_digest) == 1:
        return images[0]
    wanted = {choice} if choice else {DEFAULT_PLATFORM}
    found = {
        each.digest: each for each in images if wanted & {each.digest, each.tag, each.platform}
    }
    if choice == "" and not found:
        found = {each.digest: each for each in images if not each.platform}
    if len(found) == 1:
        return next(iter(found.values()))
    known = ", ".join(shown(each.platform or each.tag or each.digest) for each in images[:5])
    asked = f"for {shown(choice)}" if choice else "for this platform or without one"
    how_many = "several images" if found else "no image"
    raise MalformedPackage(f"it holds {how_many} {asked}, of these: {known}")


def _type_of(document: Mapping[str, Any], declared: str) -> str:
    own = document.get("mediaType", declared)
    if own != declared:
        raise MalformedPackage("the manifest is of another type than the index says")
    return declared


def _described(descriptor: Mapping[str, Any], labels: Mapping[str, str]) -> Blob:
    digest = _digest(descriptor.get("digest"))
    media_type = descriptor.get("mediaType")
    if not isinstance(media_type, str) or not 0 < len(media_type) <= 255:
        raise MalformedPackage("the manifest has a layer or configuration without a type")
    given = as_dict(descriptor.get("annotations"))
    annotations = {name: value for name, value in given.items() if isinstance(value, str)}
    annotations |= image.layer_annotations(labels, digest)
    return Blob(digest, _size(descriptor.get("size")), media_type, annotations)


def _place(members: Members, blob: Blob) -> Member:
    """Return where a blob is, when it has the size and content that are promised."""
    member = members.find(_path(blob.digest))
    if member.size != blob.size:
        raise MalformedPackage(f"blob {blob.digest} has {member.size} bytes, not {blob.size}")
    if hash_of(members, member) != blob.digest:
        raise MalformedPackage(f"blob {blob.digest} has other content than its name promises")
    return member


def _blob(members: Members, digest: object, size: object) -> bytes:
    """Return the bytes of a small blob, checked."""
    name = _digest(digest)
    raw = members.bytes_of(_path(name))
    if len(raw) != _size(size) or image.digest_of(raw) != name:
        raise MalformedPackage(f"blob {name} has other content than its name promises")
    return raw


def _path(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _digest(value: object) -> str:
    if not isinstance(value, str) or _DIGEST.fullmatch(value) is None:
        raise MalformedPackage(f"{shown(str(value))} is no digest that is read (sha256)")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise MalformedPackage(f"{shown(str(value))} is no size")
    return value
