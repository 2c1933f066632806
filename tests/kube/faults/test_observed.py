"""The helpers of these tests see what they are there to see."""

from typing import Any

import pytest

from controller.kube.informer import Change
from controller.model.objects import JsonObject
from tests.fakes.wire import Wire
from tests.kube.faults.observed import Ledger
from tests.kube.faults.table import _lines


def obj(version: int, uid: str = "one") -> JsonObject:
    return {"metadata": {"name": "a", "uid": uid, "resourceVersion": str(version)}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([(None, 1), (1, 2), (2, None)], ""),
        ([(None, 1), (1, None), (None, 5)], "came after its deletion"),
        ([(None, 5), (5, 4)], "came after version 5"),
        ([(None, 5), (5, 5)], "came after version 5"),
        ([(None, 1), (2, 3)], "the old state is ('one', 2), told before was ('one', 1)"),
        ([(1, None)], "was deleted, told before was None"),
    ],
)
async def test_a_ledger_notes_what_is_out_of_order(
    changes: list[tuple[int | None, int | None]], told: str
):
    ledger = Ledger()
    for old, new in changes:
        ledger(Change(None if old is None else obj(old), None if new is None else obj(new)))
    assert [told in problem for problem in ledger.problems] == ([True] if told else [])


async def test_a_ledger_wants_the_deletion_of_an_object_that_was_made_again():
    ledger = Ledger()
    ledger(Change(None, obj(1)))
    ledger(Change(obj(1), obj(2, "two")))
    assert ["without the deletion" in problem for problem in ledger.problems] == [True]


async def test_the_table_has_a_line_for_each_row():
    row: dict[str, Any] = {"fault": "f", "what happened": "w", "requests": 3, "busiest minute": 2}
    lines = _lines([{**row, "notice s": 1.234, "recover s": None}])
    assert lines[1].split() == ["f", "w", "1.23", "-", "3", "2"]


async def test_a_wire_without_faults_is_mended_without_harm():
    wire = Wire("127.0.0.1", 1)
    wire.mend()
    assert (wire.connections, wire.bytes_up, wire.bytes_down) == (0, 0, 0)
