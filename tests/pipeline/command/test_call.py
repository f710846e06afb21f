"""Options of a verb as keywords: which words they are on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import click
import numpy as np
import pytest

import trtforge
from pipeline.command import cli
from pipeline.command.call import words_of
from pipeline.errors import ConfigError


def verb(name: str) -> click.Command:
    command = cli.trtforge.get_command(click.Context(cli.trtforge), name)
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


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("data", np.zeros((2, 3)), "calibrate: data is of ndarray, texts, numbers and paths are expected"),
        ("data", {"x": np.zeros((2, 3))}, "calibrate: data is of ndarray"),
        ("data", b"x.npz", "calibrate: data is of bytes"),
        ("input", [["image=x"]], "calibrate: input is of list"),
    ],
)
def test_what_is_no_value_of_an_option_is_a_sentence(option: str, value: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^{sentence}"):
        words_of(verb("calibrate"), option, value)
    with pytest.raises(ConfigError, match=r"^benchmark: layers is 'no', a switch is True or False"):
        words_of(verb("benchmark"), "layers", "no")
    assert words_of(verb("benchmark"), "batch_sizes", np.array([1, 8])) == ["--batch-sizes=1,8"]


@pytest.mark.parametrize("call", ["calibrate", "run", "advise", "init"])
def test_a_path_that_cannot_be_one_is_the_commands_sentence(call: str) -> None:
    name = "x" * 300
    calls: dict[str, Callable[[], object]] = {
        "calibrate": lambda: trtforge.calibrate(name, data="e.npz", output="ranges"),
        "run": lambda: trtforge.run("plan.toml", store=name),
        "advise": lambda: trtforge.advise(name),
        "init": lambda: trtforge.init(name, "e.npz"),
    }
    with pytest.raises(ConfigError, match=r"xxx: cannot be (used|read)|plan.toml: cannot be read"):
        calls[call]()


def test_calls_of_several_threads_go_one_after_the_other() -> None:
    def call() -> None:
        with pytest.raises(ConfigError):
            trtforge.calibrate("no.onnx", data="e.npz", output="ranges")

    with trtforge._ALONE:
        thread = Thread(target=call)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()


def test_the_nearest_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^build: has no option 'min_shape'; did you mean 'min_shapes'\?"):
        words_of(verb("build"), "min_shape", {})
