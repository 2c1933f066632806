"""What one object of each watch costs in memory, as received and as stored.

The objects of ``objects.jsonl`` are those of a real API server with two packages installed; names,
UIDs and resource versions are made different. The definitions are those of the largest provider
where its source is here. Run ``python -m tests.kube.memory_bench`` for a table.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml

from controller.kube.informer import Informer
from controller.kube.informers import MetadataInformers
from controller.kube.watches import without_managed_fields
from controller.model.objects import CRD, JsonObject

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = Path(__file__).with_name("objects.jsonl")
PROVIDER = ROOT.parent / "shared" / "packages" / "provider-aws" / "crds.tar.xz"
DEFINITIONS = 2065
FULL = 60  # whole definitions, and objects of each other kind
TARGET_MIB = 10.0
RECEIVED = "bytes an object, received"
STORED = "bytes an object, stored"
METADATA = "CustomResourceDefinition, metadata only"


def measure() -> list[dict[str, Any]]:
    """Return one row for each watch: bytes an object, and memory over the idle process."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for number, (name, objects) in enumerate(_watches().items()):
            files[name] = Path(folder) / f"{number}.jsonl"
            files[name].write_bytes(b"\n".join(map(orjson.dumps, objects)))
        sizes = _child("sizes", {name: str(path) for name, path in files.items()})
        grown = _child("grown", {METADATA: str(files[METADATA])})
    for row in sizes:
        mine = row["watch"] == METADATA
        row["MiB stored"] = round(row["objects"] * row[STORED] / 2**20, 2)
        row["MiB over idle"] = grown[0]["MiB over idle"] if mine else None
        row["target MiB"] = TARGET_MIB if mine else None
    return sizes


def _child(act: str, files: dict[str, str]) -> list[dict[str, Any]]:
    """Measure in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.kube.memory_bench", act, json.dumps(files)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


# ---- objects -------------------------------------------------------------------------------------


def _watches() -> dict[str, list[JsonObject]]:
    samples = {each["kind"]: each for each in map(orjson.loads, OBJECTS.open("rb"))}
    definition = samples.pop(CRD.kind)
    metadata = {"kind": "PartialObjectMetadata", "metadata": definition["metadata"]}
    found = {
        kind: [_another(sample, f"object-{number:04}") for number in range(FULL)]
        for kind, sample in samples.items()
    }
    found["CustomResourceDefinition, whole"] = [
        _another({**definition, "spec": spec}, name) for name, spec in _specs(definition["spec"])
    ]
    found[METADATA] = [_another(metadata, name) for name in _names()]
    return found


def _another(sample: JsonObject, name: str) -> JsonObject:
    """Return a copy with a name, a UID, a resource version and a note of its own."""
    copy: JsonObject = orjson.loads(orjson.dumps(sample))
    mark = hashlib.sha256(name.encode()).hexdigest()
    metadata = copy["metadata"]
    metadata["name"] = name
    metadata["uid"] = f"{mark[:8]}-{mark[8:12]}-{mark[12:16]}-{mark[16:20]}-{mark[20:32]}"
    metadata["resourceVersion"] = str(10_000 + int(mark[:4], 16))
    if "crossdock.io/applied" in metadata.get("annotations", {}):
        metadata["annotations"]["crossdock.io/applied"] = f"{mark[:24]}-{mark[24:48]}.1"
    return copy


def _names() -> list[str]:
    if not PROVIDER.exists():
        return [f"things{number:04}.service.aws.upbound.io" for number in range(DEFINITIONS)]
    with tarfile.open(PROVIDER) as package:
        stems = [Path(member.name).stem for member in package if member.isfile()]
    return [".".join(reversed(stem.split("_", 1))) for stem in stems]


def _specs(fallback: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Yield names and specs of whole definitions, spread over the provider."""
    if not PROVIDER.exists():
        for name in _names()[:FULL]:
            yield name, fallback
        return
    with tarfile.open(PROVIDER) as package:
        members = [member for member in package if member.isfile()]
        for member in members[:: len(members) // FULL]:
            file = package.extractfile(member)
            assert file is not None
            document = yaml.load(file.read(), Loader=yaml.CSafeLoader)
            yield document["metadata"]["name"], document["spec"]


# ---- in the process that is measured -------------------------------------------------------------


def _transform(watch: str) -> Callable[[JsonObject], JsonObject]:
    if watch != METADATA:
        return without_managed_fields
    unused: Any = None
    return MetadataInformers(unused, start=unused, on_change=unused)._compact


async def _stored(path: str, transform: Callable[[JsonObject], JsonObject] | None) -> Informer:
    """Fill an informer as a streaming list does: one object after the other, then all."""
    client: Any = None
    informer = Informer(client, CRD, transform=transform)
    objects = {}
    for obj in _read(path):
        prepared = informer.prepare(obj)
        assert prepared is not None
        objects[informer.key(prepared)] = prepared
        del obj
    await informer.replace(objects, "1")
    return informer


def _read(path: str) -> Iterator[JsonObject]:
    with Path(path).open("rb") as lines:
        for line in lines:
            yield orjson.loads(line)


async def _sizes(files: dict[str, str]) -> list[dict[str, Any]]:
    """Count allocated bytes: what an object costs, whatever memory the process had spare."""
    tracemalloc.start()
    rows = []
    for watch, path in files.items():
        row: dict[str, Any] = {"watch": watch}
        for column, transform in ((RECEIVED, None), (STORED, _transform(watch))):
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            informer = await _stored(path, transform)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            row["objects"] = len(informer.store)
            row[column] = round((after - before) / len(informer.store))
            del informer, transform
        rows.append(row)
    return rows


async def _grown(files: dict[str, str]) -> list[dict[str, Any]]:
    """Compare the process's memory before and after."""
    rows = []
    for watch, path in files.items():
        gc.collect()
        before = _resident()
        informer = await _stored(path, _transform(watch))
        gc.collect()
        rows.append({"watch": watch, "MiB over idle": round((_resident() - before) / 2**20, 2)})
        del informer
    return rows


def _resident() -> int:
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print a table, or as a measured process its rows as JSON."""
    if len(sys.argv) > 1:
        act = {"sizes": _sizes, "grown": _grown}[sys.argv[1]]
        sys.stdout.write(json.dumps(asyncio.run(act(json.loads(sys.argv[2])))))
        return
    rows = measure()
    lines = [[*rows[0]], ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    for line in lines:
        cells = ("" if value is None else str(value) for value in line)
        sys.stdout.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
