"""Objects as JSON on standard output, for ``-o json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from controller.cli.session import UsageError

if TYPE_CHECKING:
    from controller.cli.session import Session

TABLES = ("default", "wide")
DOCUMENTS = ("json",)


def check_output(output: str) -> str:
    """Return an output format when it is one of those that exist.

    Raises:
        UsageError: it is none of them.
    """
    if output not in TABLES + DOCUMENTS:
        words = ", ".join(f'"{word}"' for word in TABLES + DOCUMENTS)
        raise UsageError(f'--output: expected one of {words} but got "{output}"')
    return output


def print_document(session: Session, document: Any) -> None:
    """Print objects as indented JSON."""
    session.say(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
