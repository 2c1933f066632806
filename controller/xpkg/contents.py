"""Contents: the image in an archive of ``docker save``, every blob of it checked.

Source: Docker image specification v1.2 (``manifest.json``); Crossplane's ``xpkg build``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from controller.model.manifest import shown
from controller.xpkg import image
from controller.xpkg.compression import STEP_BYTES, Reader
from controller.xpkg.errors import LimitExceeded, MalformedPackage
from controller.xpkg.files import Hashing
from controller.xpkg.image import Blob
from controller.xpkg.locate import IMAGE_BYTES_MAX
from controller.xpkg.members import Member, Members

INDEX_FILE: Final = "manifest.json"
LAYERS_MAX: Final = 127
IMAGES_MAX: Final = 1024

_NAMED_BY_HASH = re.compile(
    r"(?:sha256:|blobs/sha256/)(?P<a>[0-9a-f]{64})|(?P<b>[0-9a-f]{64})\.(?:tar|json)[.a-z]*"
)


@dataclass(frozen=True, slots=True)
class Contents:
    """One image that was read.

    Attributes:
        config: its configuration blob.
        config_raw: that blob's bytes.
        config_json: what they say.
        layers: the lowest first, with the annotations they get at push time.
        places: where the bytes of each blob are, by digest.
        manifest: the image's manifest as it is stored; None where only its parts are.
    """

    config: Blob
    config_raw: bytes
    config_json: Mapping[str, Any]
    layers: tuple[Blob, ...]
    places: Mapping[str, Member] = field(repr=False)
    manifest: image.PushManifest | None = None


def read_docker_archive(members: Members, choice: str) -> Contents:
    """Read the image of a ``manifest.json``.

    Args:
        members: of the archive.
        choice: a tag, where there are several images.

    Raises:
        MalformedPackage: what it says about its blobs is not true.
    """
    entry = _entry(members, choice)
    name = _text(entry, "Config")
    raw = members.bytes_of(name)
    config = Blob(image.digest_of(raw), len(raw), image.MEDIA_TYPE_CONFIG)
    _same_hash(name, config.hex)
    parsed = parse_config(raw)
    names = entry.get("Layers") or []
    if not isinstance(names, list) or len(names) > LAYERS_MAX:
        raise MalformedPackage(f"{INDEX_FILE} lists no layers, or more than {LAYERS_MAX}")
    diff_ids = diff_ids_of(parsed, len(names))
    labels = labels_of(parsed)
    places = {config.digest: members.find(name)}
    layers = []
    budget = IMAGE_BYTES_MAX
    for layer_name, diff_id in zip(names, diff_ids, strict=True):
        if not isinstance(layer_name, str):
            raise MalformedPackage(f"{INDEX_FILE} has a layer without a name")
        member = members.find(layer_name)
        stored = hash_of(members, member)
        _same_hash(layer_name, stored.removeprefix("sha256:"))
        compression, size = check_plain(members, member, diff_id, layer_name, budget)
        budget -= size
        media_type = image.MEDIA_TYPE_LAYER + image.LAYER_SUFFIXES[compression]
        annotations = image.layer_annotations(labels, stored)
        layers.append(Blob(stored, member.size, media_type, annotations))
        places[stored] = member
    return Contents(config, raw, parsed, tuple(layers), places)


def docker_images(members: Members) -> tuple[str, ...]:
    """Return a tag of each image of a ``manifest.json``, empty for the only image."""
    entries = _entries(members)
    if len(entries) == 1:
        return ("",)
    tags = [_tags(entry) for entry in entries]
    if not all(tags):
        raise MalformedPackage("it must contain exactly one image, or a tag for each")
    return tuple(names[0] for names in tags)


def _entries(members: Members) -> list[Mapping[str, Any]]:
    if INDEX_FILE not in members:
        raise MalformedPackage(f"file {INDEX_FILE} not found in tar")
    index = load_json(members.bytes_of(INDEX_FILE), INDEX_FILE)
    if not isinstance(index, list) or not index or not all(isinstance(e, dict) for e in index):
        raise MalformedPackage("it must contain exactly one image")
    if len(index) > IMAGES_MAX:
        raise LimitExceeded(f"holds more than {IMAGES_MAX} images")
    return index


def _entry(members: Members, choice: str) -> Mapping[str, Any]:
    entries = _entries(members)
    if len(entries) == 1 and not choice:
        return entries[0]
    named = [entry for entry in entries if choice and choice in _tags(entry)]
    if len(named) == 1:
        return named[0]
    known = ", ".join(shown(tag) for entry in entries[:5] for tag in _tags(entry)[:1]) or "no tags"
    if choice:
        raise MalformedPackage(f"it holds no image with the tag {shown(choice)}, but {known}")
    raise MalformedPackage(f"it must contain exactly one image; it holds {len(entries)}: {known}")


def _tags(entry: Mapping[str, Any]) -> list[str]:
    tags = entry.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def hash_of(members: Members, member: Member) -> str:
    """Return the digest of a member's bytes as they are stored."""
    stored = Hashing()
    for part in members.chunks(member):
        stored.write(part)
    return stored.digest


def check_plain(
    members: Members, member: Member, diff_id: object, name: str, budget: int
) -> tuple[str, int]:
    """Compare the plain bytes of a layer with what the configuration lists.

    Args:
        members: of the archive.
        member: the layer.
        diff_id: the digest that the plain bytes must have.
        name: what errors call the layer.
        budget: how many plain bytes there may be.

    Returns:
        The layer's compression and the number of its plain bytes.

    Raises:
        MalformedPackage: it is damaged, or another one.
        LimitExceeded: it has more plain bytes.
    """
    plain = Hashing()
    try:
        limit = f"{IMAGE_BYTES_MAX} bytes, uncompressed and with the layers below it"
        reader = Reader(members.open(member), budget=budget, limit=limit)
        while part := reader.read(STEP_BYTES):
            plain.write(part)
    except MalformedPackage as error:
        raise type(error)(f"layer {shown(name)} {error}") from error
    if diff_id != plain.digest:
        raise MalformedPackage(f"layer {shown(name)} is not the one the configuration lists")
    return reader.compression, plain.size


def parse_config(raw: bytes) -> Mapping[str, Any]:
    """Return an image's configuration; empty when it is no object."""
    return as_dict(load_json(raw, "the configuration"))


def diff_ids_of(config: Mapping[str, Any], layers: int) -> Sequence[object]:
    """Return the digests of the plain layers, one for each layer.

    Raises:
        MalformedPackage: there are more or fewer.
    """
    diff_ids = as_dict(config.get("rootfs")).get("diff_ids") or []
    if not isinstance(diff_ids, list) or len(diff_ids) != layers:
        raise MalformedPackage("the configuration does not list the layers of the archive")
    return diff_ids


def labels_of(config: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the labels of a configuration."""
    return as_dict(as_dict(config.get("config")).get("Labels"))


def _same_hash(name: str, hexdigest: str) -> None:
    """Refuse content that is not what a name made of a hash promises."""
    found = _NAMED_BY_HASH.fullmatch(name)
    if found is not None and hexdigest not in (found["a"], found["b"]):
        raise MalformedPackage(f"file {shown(name)} does not have the content its name promises")


def load_json(data: bytes, what: str) -> Any:
    """Return what JSON says.

    Raises:
        MalformedPackage: it is none, nested too deeply, or says something twice.
    """
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedPackage(f"{what} is no JSON: {shown(text)}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def as_dict(value: Any) -> dict[str, Any]:
    """Return a JSON object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise MalformedPackage(f"{INDEX_FILE} has no {key}")
    return value
