"""Folder: an OCI layout that lies open in a folder, read like the members of an archive.

Source: OCI image specification ("Image Layout").
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import IO

from controller.model.manifest import shown
from controller.xpkg.errors import MalformedPackage
from controller.xpkg.members import Member, Members, clean


class Folder(Members):
    """The files below one folder; links in it are not followed."""

    def __init__(self, path: Path) -> None:
        """Name a folder; its files are opened when they are asked for.

        Raises:
            OSError: it cannot be opened.
        """
        self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._current: IO[bytes] | None = None
        self._current_name = ""

    def close(self) -> None:
        """Close the folder and the file that was read last."""
        if self._current is not None:
            self._current.close()
            self._current = None
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def __contains__(self, name: str) -> bool:
        try:
            self.find(name)
        except MalformedPackage:
            return False
        return True

    def index(self) -> None:
        """Do nothing: files are found by their names."""

    def find(self, name: str) -> Member:
        """Return a regular file by its path from the folder.

        Raises:
            MalformedPackage: there is none, or it is reached through a link.
        """
        path = clean(name)
        with self._opened(path) as stream:
            return Member(0, os.fstat(stream.fileno()).st_size, name=path)

    def stream_of(self, member: Member) -> IO[bytes]:
        """Return the open file of a member; the one before it is closed."""
        if self._current is None or self._current_name != member.name:
            opened = self._opened(member.name)
            if self._current is not None:
                self._current.close()
            self._current, self._current_name = opened, member.name
        return self._current

    def _opened(self, path: str) -> IO[bytes]:
        """Open a file part by part, so that no part can be a link out of the folder."""
        *folders, name = path.split("/")
        with contextlib.ExitStack() as stack:
            at = self._root
            try:
                for folder in folders:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    at = os.open(folder, flags, dir_fd=at)
                    stack.callback(os.close, at)
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                descriptor = os.open(name, flags, dir_fd=at)
            except FileNotFoundError as error:
                raise MalformedPackage(f"file {shown(path)} not found in the folder") from error
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    text = f"file {shown(path)} is reached through a link, which is not followed"
                    raise MalformedPackage(text) from error
                raise
        stream = os.fdopen(descriptor, "rb")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            stream.close()
            raise MalformedPackage(f"file {shown(path)} is no regular file")
        return stream
