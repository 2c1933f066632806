"""Releases are taken only whole and with the published checksum, from a server that answers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import tarfile

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.lab import binaries, fetch
from tests.lab.binaries import CATALOGUE
from tests.lab.errors import LabError

PROGRAM = b"#!/bin/sh\necho v0.8.0\n"


def archive(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        member = tarfile.TarInfo(f"some-1.0/{name}")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
async def site():
    """A server of releases: fill ``files``; ``asked`` tells the requests."""
    files: dict[str, bytes] = {}
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(f"{request.method} {request.path}")
        if request.path not in files:
            raise web.HTTPNotFound
        return web.Response(body=files[request.path])

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    async with TestServer(application, host="127.0.0.1") as server:
        yield str(server.make_url("/")).rstrip("/"), files, asked


RELEASE = fetch.Release(url="https://dl.example/v1/tool.bin", checksum="{url}.sha256")
ARCHIVED = fetch.Release(url="https://dl.example/v1/tool.tar.gz", checksum="{folder}/SUMS")


def downloader(base: str) -> tuple[fetch.Downloader, list[str]]:
    said: list[str] = []
    return fetch.Downloader(base=base, announce=said.append), said


async def obtain(base, release, folder):
    fetcher, said = downloader(base)
    return await asyncio.to_thread(fetcher.obtain, release, name="tool", folder=folder), said


async def test_a_program_with_the_published_checksum_is_taken_and_can_be_run(site, tmp_path):
    base, files, _ = site
    files["/v1/tool.bin"] = PROGRAM
    files["/v1/tool.bin.sha256"] = digest(PROGRAM).encode()
    path, said = await obtain(base, RELEASE, tmp_path / "to")
    assert path == tmp_path / "to" / "tool"
    assert path.read_bytes() == PROGRAM
    assert os.access(path, os.X_OK)
    assert said[-1].startswith("downloading tool: done in")


async def test_a_program_is_taken_out_of_an_archive_whose_checksum_is_in_a_list(site, tmp_path):
    base, files, _ = site
    files["/v1/tool.tar.gz"] = archive("tool", PROGRAM)
    other = f"{'0' * 64}  other.tar.gz\n"
    files["/v1/SUMS"] = (other + digest(files["/v1/tool.tar.gz"]) + "  tool.tar.gz\n").encode()
    path, _ = await obtain(base, ARCHIVED, tmp_path)
    assert path is not None
    assert path.read_bytes() == PROGRAM


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"/v1/tool.bin.sha256": b"0" * 64}, "published is 0000"),
        ({"/v1/tool.bin": None}, "HTTP 404"),
        ({"/v1/tool.bin.sha256": None}, "HTTP 404"),
        ({"/v1/tool.bin.sha256": b"<html>not found</html>"}, "no SHA-256 for tool.bin"),
        ({"/v1/tool.bin.sha256": b"0" * 64 + b"  another.bin"}, "no SHA-256 for tool.bin"),
    ],
)
async def test_a_doubtful_program_is_not_taken_and_leaves_nothing(site, tmp_path, changes, reason):
    base, files, _ = site
    files["/v1/tool.bin"] = PROGRAM
    files["/v1/tool.bin.sha256"] = digest(PROGRAM).encode()
    for name, content in changes.items():
        files.pop(name)
        files |= {name: content} if content is not None else {}
    path, said = await obtain(base, RELEASE, tmp_path / "to")
    assert path is None
    assert reason in said[-1]
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("content", [b"no archive", archive("another", PROGRAM)])
async def test_an_archive_without_the_program_is_not_taken(site, tmp_path, content):
    base, files, _ = site
    files["/v1/tool.tar.gz"] = content
    files["/v1/SUMS"] = f"{digest(content)}  tool.tar.gz".encode()
    path, said = await obtain(base, ARCHIVED, tmp_path)
    assert path is None
    assert "its archive" in said[-1]


async def test_more_than_the_limit_is_not_read(site, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "LIMIT", 4)
    base, files, _ = site
    files["/v1/tool.bin"] = PROGRAM
    files["/v1/tool.bin.sha256"] = digest(PROGRAM).encode()
    path, said = await obtain(base, RELEASE, tmp_path)
    assert path is None
    assert "larger than 4 bytes" in said[-1]


async def test_a_server_is_asked_once_whether_it_answers(site):
    base, _, asked = site
    fetcher, _ = downloader(base)
    for _ in range(3):
        assert await asyncio.to_thread(fetcher.reachable, RELEASE)
    assert asked == ["HEAD /"]


async def test_a_server_out_of_reach_is_noted_once_and_left_alone(unused_tcp_port):
    fetcher, said = downloader(f"http://127.0.0.1:{unused_tcp_port}")
    for _ in range(3):
        assert not await asyncio.to_thread(fetcher.reachable, RELEASE)
    assert len(said) == 1
    assert "out of reach" in said[0]


def test_downloads_can_be_switched_off():
    fetcher = fetch.Downloader.of({"CROSSDOCK_LAB_DOWNLOADS": "off"}, announce=lambda _: None)
    assert not fetcher.reachable(RELEASE)


def test_the_digests_in_the_description_of_a_release_are_read():
    assets = [
        {"name": "other", "digest": "sha256:" + "1" * 64},
        {"name": "tool", "digest": "sha256:" + "2" * 64},
    ]
    content = json.dumps({"tag_name": "v1", "assets": assets}).encode()
    assert fetch.read_checksum(content, file="tool") == "2" * 64


def test_the_official_places_are_asked_unless_another_server_is_named():
    url, checksum = CATALOGUE["kube-scheduler"].release.located(None)
    assert url.startswith(f"https://dl.k8s.io/v{binaries.KUBERNETES}/bin/linux/")
    assert checksum == f"{url}.sha256"
    url, checksum = CATALOGUE["kwok"].release.located("http://127.0.0.1:1/mirror/")
    assert url.startswith("http://127.0.0.1:1/mirror/kubernetes-sigs/kwok/releases/download/")
    assert checksum.startswith("http://127.0.0.1:1/mirror/repos/kubernetes-sigs/kwok/")


async def resolve(names, *, base, cache):
    said: list[str] = []
    variables = {"XDG_CACHE_HOME": str(cache), "PATH": "", "CROSSDOCK_LAB_DOWNLOADS": base}
    try:
        found = await asyncio.to_thread(
            binaries.resolve, names, environment=variables, announce=said.append
        )
    except LabError as error:
        return {}, [*said, str(error)]
    return found, said


async def test_a_missing_binary_is_downloaded_once_and_then_found_in_the_cache(site, tmp_path):
    base, files, asked = site
    url, checksum = CATALOGUE["kwok"].release.located("")
    files[url] = PROGRAM
    asset = {"name": url.rpartition("/")[2], "digest": f"sha256:{digest(PROGRAM)}"}
    files[checksum] = json.dumps({"assets": [asset]}).encode()
    found, _ = await resolve(("kwok",), base=base, cache=tmp_path)
    assert found["kwok"].read_bytes() == PROGRAM
    asked.clear()
    again, said = await resolve(("kwok",), base=base, cache=tmp_path)
    assert again == found
    assert asked == []
    assert said == []


async def test_without_a_matching_download_and_without_go_the_remedies_are_told(site, tmp_path):
    base, files, _ = site
    url, checksum = CATALOGUE["etcd"].release.located("")
    files[url] = archive("etcd", PROGRAM)
    files[checksum] = f"{'0' * 64}  {url.rpartition('/')[2]}".encode()
    found, said = await resolve(("etcd",), base=base, cache=tmp_path)
    assert found == {}
    assert "published is 0000" in said[-2]
    assert "CROSSDOCK_LAB_BIN" in said[-1]
    assert not list(tmp_path.rglob("etcd"))
