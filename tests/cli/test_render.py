"""Tables, trees, ages and sizes as text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from controller.cli.render import Branch, age, counted, shortened, size, table, tree

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_without_spaces():
    lines = table(("NAME", "OK", "STATUS"), [("a-long-name", "True", ""), ("b", "", "x\ny")])
    assert lines == [
        "NAME          OK     STATUS",
        "a-long-name   True",
        "b                    x y",
    ]


def test_a_table_without_rows_is_its_header():
    assert table(("A", "B"), []) == ["A     B"]


def test_a_tree_shows_what_hangs_where():
    root = Branch(
        "root",
        (Branch("a", (Branch("a1"), Branch("a2"))), Branch("b", (Branch("b1"),))),
    )
    assert [prefix + value for prefix, value in tree(root)] == [
        "root",
        "├─ a",
        "│  ├─ a1",
        "│  └─ a2",
        "└─ b",
        "   └─ b1",
    ]


@pytest.mark.parametrize(
    ("past", "text"),
    [
        (timedelta(seconds=-5), "0s"),
        (timedelta(seconds=0), "0s"),
        (timedelta(seconds=119), "119s"),
        (timedelta(minutes=2), "2m"),
        (timedelta(hours=2), "2h"),
        (timedelta(hours=47, minutes=59), "47h"),
        (timedelta(days=2), "2d"),
        (timedelta(days=729), "729d"),
        (timedelta(days=730), "2y"),
        (timedelta(days=770), "2y40d"),
    ],
)
def test_ages_are_short(past, text):
    created = (NOW - past).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert age(created, NOW) == text


def test_no_stamp_has_no_age():
    assert age("", NOW) == "-"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (17_400_000, "17 MB"),
        (2_000_000_000_000, "2000 GB"),
    ],
)
def test_sizes_have_decimal_units(count, text):
    assert size(count) == text


def test_counts_carry_their_noun():
    assert (counted(1, "object"), counted(0, "object")) == ("1 object", "0 objects")


def test_a_long_message_keeps_its_end():
    assert shortened("x" * 64) == "x" * 64
    assert shortened("y" + "x" * 64) == "..." + "x" * 64
