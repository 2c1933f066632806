"""How failures become one line of text and an exit code.

The rooms raise errors of their own whose text says what, where and how to mend it; here they get
the remedies that only the command line knows. Anything else is a fault of crossdock itself.
"""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from controller.cli.session import CommandError, Session, UsageError

if TYPE_CHECKING:
    from controller.kube.client import ApiError

_UNKNOWN_RESOURCE = ("could not find the requested resource", "page not found")


def usage_error(error: CycloptsError) -> UsageError:
    """Return a parser's error in the words of this command line."""
    if isinstance(error, UnknownOptionError):
        flag = error.token.keyword or error.token.value
        return UsageError(f"unknown flag {flag}")
    if isinstance(error, UnusedCliTokensError):
        return UsageError(f"unexpected argument {' '.join(error.unused_tokens or ())}")
    if isinstance(error, UnknownCommandError):
        word = next(iter(error.unused_tokens or ()), "")
        is_flag = word.startswith("-")
        return UsageError(f"unknown flag {word}" if is_flag else f'there is no verb "{word}"')
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        name = error.keyword or error.argument.name
        text = f"{name}: expected a value" if name.startswith("-") else f'expected "{name}"'
        return UsageError(text)
    if isinstance(error, CoercionError) and error.token is not None:
        name = error.token.keyword or (error.argument.name if error.argument else "argument")
        return UsageError(f'{name}: {_expected(error)} but got "{error.token.value}"')
    return UsageError(" ".join(str(error).split()).rstrip("."))


def _expected(error: CoercionError) -> str:
    target = error.target_type
    if get_origin(target) is Literal:
        words = ", ".join(f'"{word}"' for word in get_args(target))
        return f"expected one of {words}"
    if target is int:
        return "expected a number"
    return "expected another value"


def explain(error: BaseException, session: Session) -> CommandError:
    """Return what to tell a person about a failure, with its exit code.

    Args:
        error: what a verb raised. Of a group of errors the first counts: the others follow from
            its cancellation.
        session: its program name stands in remedies.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, CommandError):
        return error
    client = sys.modules.get("controller.kube.client")
    if client is not None and isinstance(error, client.ApiError):
        return CommandError(_api_text(error, session))
    faults: tuple[str, ...] = getattr(error, "faults", ())
    if len(faults) > 1:
        return CommandError("\n  ".join([f"{len(faults)} faults:", *faults]))
    if type(error).__module__.startswith("controller."):
        return CommandError(_one_line(error))
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return CommandError(f"{place}{error.strerror or error}")
    return CommandError(
        f"{_one_line(error) or 'no text'} ({type(error).__name__} at {_place(error)}); "
        "this is a fault of crossdock: please report it with this line"
    )


def _api_text(error: ApiError, session: Session) -> str:
    text = _one_line(error)
    if error.not_found and any(part in error.message for part in _UNKNOWN_RESOURCE):
        return (
            f"this cluster does not serve Crossplane's package kinds ({text}): "
            f"run '{session.program} init' first, or choose another cluster with --context"
        )
    if error.status in {401, 403}:
        return f"{text}: use an account that may, or another --context"
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return "an unknown place"
    frame = frames[-1]
    return f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
