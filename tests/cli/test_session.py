"""Streams, paths and the line of progress."""

from __future__ import annotations

from pathlib import Path

from controller.cli.session import Progress
from tests.cli.conftest import Stream


def test_results_and_notes_go_to_their_streams(make_session):
    session = make_session()
    session.say("result")
    session.note("note")
    assert session.stdout.getvalue() == "result\n"
    assert session.stderr.getvalue() == "note\n"


def test_paths_are_relative_to_the_folder_and_shown_so(make_session, tmp_path):
    session = make_session()
    assert session.path("a/b") == tmp_path / "a/b"
    assert session.path("/x") == Path("/x")
    assert session.shown(tmp_path / "a/b") == "a/b"
    assert session.shown(Path("/x/y")) == "/x/y"


def test_progress_is_rewritten_in_place_and_cut_to_the_terminal():
    stream = Stream(terminal=True)
    with Progress(stream, width=10) as line:
        line.show("short")
        line.show("short")
        line.show("much too long")
    assert stream.getvalue() == "\r\x1b[Kshort\r\x1b[Kmuch too…\r\x1b[K"


def test_elsewhere_there_is_no_progress():
    stream = Stream()
    with Progress(stream, width=10) as line:
        line.show("short")
    assert stream.getvalue() == ""
