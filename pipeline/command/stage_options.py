"""A stage's fields as options of the command line, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from pipeline.errors import ConfigError

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])


class _Number(click.types.FloatParamType):
    """A number; not NaN, which nothing is above or below, so that a bound would never be reached."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The float; click's own error for anything else."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


NUMBER = _Number()
CLICK_TYPES = {int: click.INT, float: NUMBER, str: click.STRING}


def stage_options(kind: type[Any], *leave_out: str) -> Callable[[F], F]:
    """A click option for every field of a stage, with its default and its help sentence; nested records too."""

    def decorate(function: F) -> F:
        for name, hint, default, text in reversed(list(_options(kind))):
            if name not in leave_out:
                click.option(*_flag(name, hint), **_settings(hint, default), help=text)(function)
        return function

    return decorate


def stage_from_options(stage: S, options: dict[str, Any]) -> S:
    """The stage with the options that were given; takes them out of ``options``."""
    changes: dict[str, Any] = {}
    for field in fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        if is_dataclass(value):
            changes[field.name] = stage_from_options(value, options)
        elif field.name in options:
            taken = options.pop(field.name)
            changes[field.name] = _split(taken, value) if isinstance(value, tuple) else taken
    return replace(stage, **changes)  # type: ignore[type-var]


def _split(text: str, example: tuple[Any, ...]) -> tuple[Any, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if example and isinstance(example[0], int):
        try:
            return tuple(int(part) for part in parts)
        except ValueError as error:
            raise ConfigError(f"'{text}': is not a list of whole numbers; write 1,8,32") from error
    return tuple(parts)


def _options(kind: type[Any]) -> Iterator[tuple[str, Any, Any, str]]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(field.default):
            yield from _options(type(field.default))
        else:
            yield field.name, hints[field.name], field.default, field.metadata.get("help", "")


def _flag(name: str, hint: object) -> list[str]:
    flag = name.replace("_", "-")
    return [f"--{flag}/--no-{flag}"] if hint is bool else [f"--{flag}", name]


def _settings(hint: Any, default: Any) -> dict[str, Any]:
    if get_origin(hint) is Literal:
        return {"type": click.Choice(get_args(hint)), "default": default, "show_default": True}
    if isinstance(default, tuple):
        shown = ",".join(str(part) for part in default)
        return {"default": shown, "show_default": bool(shown), "metavar": "A,B,…"}
    if hint is bool:
        return {"default": default, "show_default": True}
    return {"type": CLICK_TYPES[hint], "default": default, "show_default": default != ""}
