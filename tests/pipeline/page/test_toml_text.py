"""Values and keys as TOML, read back by TOML's own reader."""

from __future__ import annotations

import math

import pytest
import tomllib

from pipeline.page.toml_text import key_text, value_text


@pytest.mark.parametrize(
    "value",
    [
        'a "quoted" \\ ümlaut',
        "del\x7f, esc\x1b, line\n, tab\t",
        3,
        0.25,
        1e-7,
        math.inf,
        -math.inf,
        True,
        ["a", "b"],
        [],
        {},
        {"a b": [1, 2.5], "c": {"d.e": "f"}},
        [{"method": "max", "of": math.inf}, {"x": False}],
    ],
)
def test_what_is_written_is_what_is_read(value: object) -> None:
    text = value_text(value)
    assert "\n" not in text
    assert tomllib.loads(f"key = {text}\n") == {"key": value}


@pytest.mark.parametrize("key", ["image", "a.b", "serving default:0", "", "ü", "del\x7f"])
def test_keys(key: str) -> None:
    assert tomllib.loads(f"{key_text(key)} = 1\n") == {key: 1}


def test_not_a_number_and_tuples() -> None:
    assert math.isnan(tomllib.loads(f"x = {value_text(math.nan)}")["x"])
    assert value_text((1, 2)) == "[1, 2]"
