"""Options of the command line out of a stage's fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner

from pipeline.command.stage_options import stage_from_options, stage_options
from pipeline.errors import ConfigError
from pipeline.option import option


@dataclass(frozen=True)
class Oven:
    """A record inside a stage."""

    heat_c: float = option(180.0, "how hot")


@dataclass(frozen=True)
class Topping:
    """A record that there are several of."""

    seed: str
    grams: float = 1.0


@dataclass(frozen=True)
class Bake:
    """A stage with a field of every kind."""

    num_loaves: int = option(2, "how many")
    flour: str = option("rye", "of what")
    salted: bool = option(True, "with salt")
    form: Literal["round", "long"] = option("round", "which form")
    minutes: tuple[int, ...] = option((10, 40), "for how long")
    seeds: tuple[str, ...] = option((), "what goes on top")
    toppings: tuple[Topping, ...] = option((), "what else")
    oven: Oven = Oven()


@pytest.fixture
def baked() -> Callable[..., tuple[Any, str]]:
    """Calls a command that has the stage's options; gives the stage and what was printed."""

    def call(*arguments: str) -> tuple[Any, str]:
        found: list[Bake | BaseException | None] = []

        @click.command()
        @stage_options(Bake)
        def bake(**given: Any) -> None:
            found.append(stage_from_options(Bake(), given))
            assert given == {}, "options that nobody took"

        result = CliRunner().invoke(bake, list(arguments))
        return (found or [result.exception])[0], result.output

    return call


def test_no_option_is_the_default(baked: Callable[..., tuple[Any, str]]) -> None:
    assert baked()[0] == Bake()


def test_every_kind_of_field(baked: Callable[..., tuple[Any, str]]) -> None:
    stage, _ = baked(
        "--num-loaves", "3", "--flour", "wheat", "--no-salted", "--form", "long", "--minutes", "5, 6",
        "--seeds", "poppy,sesame", "--heat-c", "220",
    )  # fmt: skip
    assert stage == Bake(3, "wheat", False, "long", (5, 6), ("poppy", "sesame"), (), Oven(220.0))


def test_help_shows_defaults_and_sentences(baked: Callable[..., tuple[Any, str]]) -> None:
    _, text = baked("--help")
    for words in (
        "how many  [default: 2]",
        "with salt  [default: salted]",
        "[round|long]",
        "[default: 10,40]",
        "180.0",
    ):
        assert words in text
    assert "what goes on top\n" in text


def test_a_list_of_numbers_that_is_none(baked: Callable[..., tuple[Any, str]]) -> None:
    error, _ = baked("--minutes", "5,x")
    assert isinstance(error, ConfigError)
    assert str(error) == "'5,x': is not a list of whole numbers; write 1,8,32"


def test_options_can_be_left_out() -> None:
    @click.command()
    @stage_options(Bake, "flour")
    def bake(**given: Any) -> None:
        assert "flour" not in given

    assert CliRunner().invoke(bake, ["--flour", "x"]).exit_code == 2
    assert CliRunner().invoke(bake, []).exit_code == 0


def test_records_are_written_as_in_a_plan(baked: Callable[..., tuple[Any, str]]) -> None:
    stage, _ = baked("--toppings", "seed = 'poppy'", "--toppings", 'seed = "a=b, c", grams = 2')
    assert stage.toppings == (Topping("poppy"), Topping("a=b, c", 2.0))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed", "--toppings: 'seed' is not KEY = VALUE, … as in TOML"),
        ("sed = 'x'", "--toppings: unknown key 'sed'; did you mean 'seed'? known: seed, grams"),
        ("grams = 1", "--toppings: the key 'seed' is missing"),
        ("seed = 'x', grams = nan", "--toppings: [grams] is nan, but takes a number"),
        ("seed = 'x' } \n[other]\na = {", "--toppings: 'seed = 'x' } "),
    ],
)
def test_records_are_read_strictly(baked: Callable[..., tuple[Any, str]], text: str, said: str) -> None:
    error, _ = baked("--toppings", text)
    assert isinstance(error, ConfigError)
    assert str(error).startswith(said)
