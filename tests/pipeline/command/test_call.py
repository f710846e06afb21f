"""Options of a verb as keywords: which words they are on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from pipeline.command.call import words_of
from pipeline.command.cli import trtforge
from pipeline.errors import ConfigError


def verb(name: str) -> click.Command:
    command = trtforge.get_command(click.Context(trtforge), name)
    assert command is not None
    return command


@pytest.mark.parametrize(
    ("name", "option", "value", "words"),
    [
        ("calibrate", "data", Path("a b.npz"), ["--data=a b.npz"]),
        ("calibrate", "limit", 3, ["--limit=3"]),
        ("calibrate", "labels", None, []),
        ("calibrate", "input", {"image": "x", "mask": "m"}, ["--input=image=x", "--input=mask=m"]),
        ("calibrate", "input", ["image=x"], ["--input=image=x"]),
        ("quantize", "exclude", ["Gemm", "head/*"], ["--exclude=Gemm,head/*"]),
        ("quantize", "coarsen_to_symmetric", True, ["--coarsen-to-symmetric"]),
        ("quantize", "coarsen_to_symmetric", False, ["--no-coarsen-to-symmetric"]),
        ("validate", "simulate", True, ["--simulate"]),
        ("validate", "simulate", False, []),
        ("validate", "atol", -1.5, ["--atol=-1.5"]),
        ("benchmark", "batch_sizes", (1, 8), ["--batch-sizes=1,8"]),
        ("build", "min_shapes", {"image": (1, 8, 8, 1)}, ["--min-shapes=image:1x8x8x1"]),
        ("build", "output", "-", ["--output=-"]),
        ("gate", "budget", ["size_mib <= 1"], ["--budget=size_mib <= 1"]),
        ("gate", "budget", "size_mib <= 1", ["--budget=size_mib <= 1"]),
    ],
)
def test_a_keyword_is_an_option(name: str, option: str, value: Any, words: list[str]) -> None:
    assert words_of(verb(name), option, value) == words


def test_the_nearest_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^build: has no option 'min_shape'; did you mean 'min_shapes'\?"):
        words_of(verb("build"), "min_shape", {})
