"""Scalars: tables whose answers sigs.k8s.io/yaml v1.6 gives, and laws."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model.scalars import ScalarError, key_text, resolve, resolve_tagged

TAG = "tag:yaml.org,2002:"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("y Y yes Yes YES true True TRUE on On ON", True),
        ("n N no No NO false False FALSE off Off OFF", False),
        ("~ null Null NULL", None),
    ],
)
def test_words_of_yaml_1_1_mean_booleans_and_null(words, value):
    assert all(resolve(word) is value for word in words.split())


@pytest.mark.parametrize("word", ["tRue", "yEs", "nUll", "oN", "nan", "inf", "NaN", "Infinity"])
def test_other_spellings_are_text(word):
    assert resolve(word) == word


def test_nothing_is_null():
    assert resolve("") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-1", -1),
        ("+1", 1),
        ("-0", 0),
        ("00", 0),
        ("0777", 511),
        ("-0777", -511),
        ("0o777", 511),
        ("0b101", 5),
        ("-0b11", -3),
        ("0x1F", 31),
        ("0X1F", 31),
        ("+0x1F", 31),
        ("0x_1F", 31),
        ("1_000", 1000),
        ("1_", 1),
        ("1__0", 10),
        ("0_7", 7),
        ("08", 8),
        ("9223372036854775808", 9223372036854775808),
        ("18446744073709551615", 18446744073709551615),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1e+3", 1000),
        ("1.", 1),
        ("1.e3", 1000),
        ("4_2.", 42),
        ("1.0", 1),
        ("3.0e0", 3),
        ("-.5e3", -500),
        ("1e15", 1000000000000000),
    ],
)
def test_whole_numbers_are_integers_however_they_are_written(text, value):
    assert resolve(text) == value
    assert type(resolve(text)) is int


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.5", 1.5),
        (".5", 0.5),
        ("+.5", 0.5),
        ("1_000.5", 1000.5),
        ("0.1e-5", 0.000001),
        ("1e-7", 1e-7),
        ("18446744073709551616", 18446744073709551616.0),
        ("1e21", 1e21),
        ("1.2345678901234567890123", 1.2345678901234567),
    ],
)
def test_other_numbers_are_floats(text, value):
    assert resolve(text) == value
    assert type(resolve(text)) is float


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-01",
        "2001-12-14t21:59:43.10-05:00",
        "12:30:45",
        "_1",
        "1e400",
        "0x",
        "0b",
        "0b2",
        "1.1.1",
        "1e",
        "e3",
        "0x1p4",
        "123abc",
        "1,000",
        "=",
        "<<",
        "-",
        "+",
        ".",
        "._5",
        "9" * 5000,
    ],
)
def test_what_only_looks_like_a_number_is_text(text):
    assert resolve(text) == text


@pytest.mark.parametrize("text", [".inf", "-.inf", "+.Inf", ".INF", ".nan", ".NaN"])
def test_infinity_and_no_number_are_refused(text):
    with pytest.raises(ScalarError, match="not a number that JSON can hold"):
        resolve(text)


@given(st.text(max_size=40))
def test_every_text_resolves_to_a_json_value_or_is_refused(text):
    try:
        value = resolve(text)
    except ScalarError:
        return
    assert value is None or isinstance(value, (bool, int, str)) or math.isfinite(value)


@pytest.mark.parametrize(
    ("tag", "text", "plain", "value"),
    [
        ("!", "12", True, "12"),
        (TAG + "str", "yes", True, "yes"),
        (TAG + "int", "3", False, 3),
        (TAG + "float", "3", True, 3),
        (TAG + "float", "1.5", True, 1.5),
        (TAG + "bool", "yes", True, True),
        (TAG + "null", "", False, None),
    ],
)
def test_a_tag_decides_the_type(tag, text, plain, value):
    result = resolve_tagged(text, tag, plain=plain)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        (TAG + "int", "x"),
        (TAG + "int", "true"),
        (TAG + "bool", "1"),
        (TAG + "float", "x"),
        (TAG + "null", "x"),
        (TAG + "binary", "aGk="),
        (TAG + "timestamp", "2020-01-01"),
        (TAG + "python/object/apply:os.system", "x"),
        ("!foo", "bar"),
    ],
)
def test_a_tag_that_does_not_fit_or_has_no_meaning_is_refused(tag, text):
    with pytest.raises(ScalarError):
        resolve_tagged(text, tag, plain=True)


@pytest.mark.parametrize(
    ("value", "text"), [("a", "a"), (1, "1"), (True, "true"), (False, "false"), (1.5, "1.5")]
)
def test_keys_become_text(value, text):
    assert key_text(value) == text


def test_a_null_key_is_refused():
    with pytest.raises(ScalarError, match="must not be null"):
        key_text(None)
