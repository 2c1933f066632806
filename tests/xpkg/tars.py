"""Archives and layers for tests: made by the standard library, or damaged by hand."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True)
class Layer:
    """A layer as a manifest describes it."""

    name: str = "layer"
    media_type: str = LAYER
    annotations: dict[str, str] = field(default_factory=dict)


BASE = Layer("base", annotations={"io.crossplane.xpkg": "base"})


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """Return an entry for ``make_tar``: a file, or what ``type`` says."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def make_tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 - tarfile's name
    """Return an archive as the standard library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def with_checksum(block: bytes) -> bytes:
    """Return a header block with the checksum of what it holds."""
    blanked = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\x00 " % sum(blanked) + block[156:]


def docker_archive(
    layers: dict[str, bytes], diff_ids: list[str], *, labels: dict[str, str] | None = None
) -> bytes:
    """Return an archive of ``docker save`` from members and what the configuration lists."""
    config = json.dumps(
        {
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Labels": labels or {}},
        }
    ).encode()
    index = [{"Config": "config.json", "RepoTags": None, "Layers": list(layers)}]
    members = [member("config.json", config)]
    members += [member(name, content) for name, content in layers.items()]
    return make_tar(*members, member("manifest.json", json.dumps(index).encode()))


def digest(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tree(root: Path, files: dict[str, str]) -> Path:
    """Write files below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
