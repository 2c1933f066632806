"""Parsing in a process of its own: its answers, its errors, its limits and its end."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from controller.model.content import read_index
from controller.model.manifest import ManifestError
from controller.xpkg import parse
from controller.xpkg.errors import LimitExceeded, XpkgError
from controller.xpkg.parse import parse_in_process

META = "apiVersion: meta.pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: p}\n"
CRD = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: a}\n"


@pytest.fixture
def stream(tmp_path):
    path = tmp_path / "package.yaml"
    path.write_text(f"{META}---\n{CRD}")
    return path


@pytest.fixture
def lines(tmp_path):
    return tmp_path / "objects"


def children():
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc to see this process's children")
    return {child for t in tasks.iterdir() for child in (t / "children").read_text().split()}


async def test_the_parsed_form_is_written_and_described(stream, lines):
    package = await parse_in_process(stream, lines)
    assert [str(entry) for entry in package.entries] == ["CustomResourceDefinition a"]
    with lines.open("rb") as written:
        assert read_index(written) == package


async def test_a_fault_in_the_content_keeps_its_place(stream, lines):
    stream.write_text(f"{META}---\na: [\n")
    with pytest.raises(ManifestError) as caught:
        await parse_in_process(stream, lines, source="reg.io/p: package.yaml")
    error = caught.value
    assert (error.source, error.document, error.line) == ("reg.io/p: package.yaml", 2, 6)
    assert not lines.exists()


async def test_a_file_that_is_missing(tmp_path, lines):
    with pytest.raises(FileNotFoundError, match="gone"):
        await parse_in_process(tmp_path / "gone", lines)


async def test_a_file_that_cannot_be_written(stream, tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        await parse_in_process(stream, tmp_path / "gone/objects")


async def test_too_little_memory(stream, lines):
    stream.write_text(META + "x: '" + "x" * 9_000_000 + "'\n")
    with pytest.raises((LimitExceeded, XpkgError)):
        await parse_in_process(stream, lines, memory=60 * 2**20)
    assert not lines.exists()


async def test_a_deadline_ends_the_process(stream, lines):
    before = children()
    stream.write_text("---\n".join([META, *[CRD] * 15_000]))
    with pytest.raises(LimitExceeded, match=r"takes longer than 0\.05 s"):
        await parse_in_process(stream, lines, deadline=0.05)
    assert children() <= before
    assert not lines.exists()


async def test_a_cancelled_call_ends_the_process(stream, lines):
    before = children()
    stream.write_text("---\n".join([META, *[CRD] * 15_000]))
    task = asyncio.create_task(parse_in_process(stream, lines))
    while children() <= before:  # noqa: ASYNC110 - a process begins without telling anyone
        await asyncio.sleep(0.001)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert children() <= before
    assert not lines.exists()


async def test_a_process_that_fails_says_why(stream, lines, monkeypatch):
    monkeypatch.setattr(parse, "_PROGRAM", "raise SystemExit('broken')")
    with pytest.raises(XpkgError, match="ended with 1: broken"):
        await parse_in_process(stream, lines)
