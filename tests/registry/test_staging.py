import asyncio
import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from controller.registry.failures import StorageError
from controller.registry.staging import PREFIX, staging_folder, sweep_staging


async def test_a_folder_is_private_and_goes_at_the_end(tmp_path):
    async with staging_folder(tmp_path) as staging:
        assert staging.folder.parent == tmp_path
        assert staging.folder.stat().st_mode & 0o777 == 0o700
        staging.layer.write_text("x")
        (staging.folder / "deeper").mkdir()
    assert not list(tmp_path.iterdir())


async def test_a_folder_goes_after_errors_too(tmp_path):
    with pytest.raises(RuntimeError):
        async with staging_folder(tmp_path):
            raise RuntimeError
    assert not list(tmp_path.iterdir())


async def test_the_next_place_is_used_when_one_cannot_be_written(tmp_path):
    async with staging_folder(tmp_path / "gone", tmp_path) as staging:
        assert staging.folder.parent == tmp_path


async def test_without_any_place_the_remedy_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"No such file or directory.*set TMPDIR"):
        async with staging_folder(tmp_path / "a", tmp_path / "b"):
            pass


async def test_the_systems_temporary_folder_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with staging_folder(None) as staging:
        assert staging.folder.parent == tmp_path


def aged(folder: Path) -> Path:
    folder.mkdir()
    (folder / "layer").write_text("x")
    os.utime(folder, (1, 1))
    return folder


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    dead = aged(tmp_path / f"{PREFIX}dead")
    alive = aged(tmp_path / f"{PREFIX}alive")
    young = tmp_path / f"{PREFIX}young"
    young.mkdir()
    other = aged(tmp_path / "other")
    elsewhere = aged(tmp_path / "elsewhere")
    link = tmp_path / f"{PREFIX}link"
    link.symlink_to(elsewhere)
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        sweep_staging(tmp_path)
    finally:
        os.close(lock)
    assert not dead.exists()
    assert all(path.exists() for path in (alive, young, other, link, elsewhere / "layer"))


def test_sweeping_nowhere_is_no_error(tmp_path, monkeypatch):
    sweep_staging(tmp_path / "gone")

    def nowhere():
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    sweep_staging(None)


async def test_many_at_once_have_folders_of_their_own(tmp_path):
    async def use() -> str:
        async with staging_folder(tmp_path) as staging:
            await asyncio.sleep(0.01)
            return str(staging.folder)

    async with asyncio.TaskGroup() as tasks:
        done = [tasks.create_task(use()) for _ in range(20)]
    assert len({task.result() for task in done}) == 20
    assert not list(tmp_path.iterdir())
