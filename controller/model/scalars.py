"""Scalars: what an unquoted word of YAML means as a JSON value.

The rules are those of the reader that Kubernetes and Crossplane use, so that a manifest means the
same here and there: ``yes``, ``no``, ``on``, ``off``, ``y`` and ``n`` are booleans, a leading zero
makes an octal number, ``_`` may group digits; dates and ``12:30:45`` are text; a number without a
fraction is an integer, however it is written.

Source: sigs.k8s.io/yaml v1.6 (go.yaml.in/yaml/v2, ``resolve.go``, and its conversion to JSON).
"""

from __future__ import annotations

import math
import re
from typing import Final, TypeAlias

Scalar: TypeAlias = bool | int | float | str | None

TAG_PREFIX: Final = "tag:yaml.org,2002:"
STRING: Final = TAG_PREFIX + "str"
MERGE: Final = "<<"

_TRUE = ("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON")
_FALSE = ("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF")
_NULL = ("", "~", "null", "Null", "NULL")
_NAMED: Final[dict[str, Scalar]] = {
    **dict.fromkeys(_TRUE, True),
    **dict.fromkeys(_FALSE, False),
    **dict.fromkeys(_NULL, None),
}
_NOT_JSON = frozenset(
    sign + word
    for sign in ("", "+", "-")
    for word in (".inf", ".Inf", ".INF", ".nan", ".NaN", ".NAN")
    if not (sign and word[1] in "nN")
)
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)"
    r"|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_BASES = (("dec", 10), ("oct", 8), ("hex", 16), ("bin", 2))
_NUMBER_STARTS = frozenset("0123456789+-.")
# An unquoted scalar that begins with a letter is text, unless it is one of the short words.
LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
WORDS: Final = frozenset(_NAMED)
WORD_LENGTH_MAX: Final = max(map(len, _NAMED))
_NUMBER_LENGTH_MAX: Final = 4096  # digits; converting text to a number takes quadratic time
_INT_MIN, _UINT_MAX = -(2**63), 2**64 - 1
_EXACT: Final = 2.0**63


class ScalarError(ValueError):
    """A scalar that JSON cannot hold, or that is not of the type its tag claims."""


def resolve(text: str) -> Scalar:
    """Return the value of an unquoted scalar without a tag.

    Args:
        text: the scalar as the YAML parser returns it.

    Returns:
        A boolean, None, an integer of 64 bits, a finite float, or the text itself.

    Raises:
        ScalarError: infinity or "not a number", which JSON lacks.
    """
    if text[:1] in LETTERS and (len(text) > WORD_LENGTH_MAX or text not in WORDS):
        return text
    if text in _NAMED:
        return _NAMED[text]
    if text[0] not in _NUMBER_STARTS:
        return text
    if text in _NOT_JSON:
        raise ScalarError(f"{text} is not a number that JSON can hold; quote it if it is text")
    number = _number(text)
    return text if number is None else number


def _number(text: str) -> int | float | None:
    """Return the number that a text is, None when it is none."""
    if len(text) > _NUMBER_LENGTH_MAX:
        return None
    digits = text if text[0] == "." else text.replace("_", "")
    found = _INTEGER.fullmatch(digits)
    if found is not None:
        magnitude = next(int(found[name], base) for name, base in _BASES if found[name])
        value = -magnitude if found["sign"] == "-" else magnitude
        if _INT_MIN <= value <= _UINT_MAX:
            return value
    if _FLOAT.fullmatch(digits) is None:
        return None
    return _plain_number(float(digits))


def _plain_number(value: float) -> int | float | None:
    """Return a float as JSON writes it: whole numbers as integers, None beyond a float's range."""
    if not math.isfinite(value):
        return None
    if value.is_integer() and -_EXACT <= value < _EXACT:
        return int(value)
    return value


def resolve_tagged(text: str, tag: str, *, plain: bool) -> Scalar:
    """Return the value of a scalar that carries a tag.

    Args:
        text: the scalar.
        tag: its resolved tag; ``!`` stands for text.
        plain: whether it is unquoted.

    Raises:
        ScalarError: a tag that JSON has no type for, or a value that is not of its type.
    """
    kind = tag.removeprefix(TAG_PREFIX)
    if tag == "!" or kind == "str":
        return text
    if kind not in _TAG_TYPES:
        raise ScalarError(f"the tag {shown_tag(tag)} has no meaning in a Kubernetes object")
    value = resolve(text) if plain or text else None
    if type(value) not in _TAG_TYPES[kind]:
        raise ScalarError(f"{text[:64]!r} is not of the type {shown_tag(tag)}")
    return value


_TAG_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "null": (type(None),),
}


def shown_tag(tag: str) -> str:
    """Return a tag as people write it, ``!!int`` for example, cut to 64 characters."""
    return tag.replace(TAG_PREFIX, "!!", 1)[:64]


def key_text(value: Scalar) -> str:
    """Return the text of a mapping's key, which in JSON has to be text.

    Raises:
        ScalarError: a null key.
    """
    if isinstance(value, str):
        return value
    if value is None:
        raise ScalarError("a key must not be null")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else repr(value)
