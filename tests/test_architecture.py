"""House rules that a machine can check."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import invariants

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "controller").rglob("*.py"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
FORBIDDEN_NAMES = {"utils.py", "common.py", "helpers.py", "base.py"}
TASK_ROOMS = {"app.py"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    documented = ast.get_docstring(node, clean=False)
    docstring = node.body[0] if documented is not None else None
    length = (node.end_lineno or node.lineno) - node.lineno + 1
    if docstring is not None:
        length -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
    return length


def test_modules_stay_short():
    long = {relative(p): n for p in MODULES if (n := p.read_text().count("\n")) > MAX_MODULE_LINES}
    assert long == {}


def test_functions_stay_short():
    long = {
        f"{relative(path)}:{node.lineno} {node.name}": code_lines(node)
        for path in MODULES
        for node in functions(path)
        if code_lines(node) > MAX_FUNCTION_LINES
    }
    assert long == {}


def test_every_module_states_its_promise():
    silent = [relative(path) for path in MODULES if not ast.get_docstring(tree(path))]
    assert silent == []


def test_no_module_is_a_drawer_for_everything():
    assert [relative(path) for path in MODULES if path.name in FORBIDDEN_NAMES] == []


def test_the_model_waits_for_nothing():
    waiting = [
        f"{relative(path)}:{node.lineno}"
        for path in MODULES
        if path.parent.name == "model"
        for node in functions(path)
        if isinstance(node, ast.AsyncFunctionDef)
    ]
    assert waiting == []


def test_no_task_is_without_a_parent():
    """``asyncio.create_task`` outside a task group leaves a task that nobody waits for."""
    found = [
        f"{relative(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("asyncio.create_task", "asyncio.ensure_future")
        and path.name not in TASK_ROOMS
    ]
    assert found == []


@pytest.mark.parametrize("name", ["cli", "kube", "flow", "registry", "xpkg", "model", "stages"])
def test_every_room_exists(name: str):
    assert (ROOT / "controller" / name / "__init__.py").exists()


def test_every_promise_of_the_kubernetes_machinery_has_a_test():
    found = invariants.shown()
    assert [number for number in invariants.PROMISES if not found.get(number)] == []
    assert [number for number in found if number not in invariants.PROMISES] == []
