"""A stage's fields as options of the command line, and back."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from pipeline.errors import ConfigError
from pipeline.strict import record_from_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

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
    hints = get_type_hints(type(stage))
    for field in fields(stage):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        if is_dataclass(value):
            changes[field.name] = stage_from_options(value, options)
        elif field.name in options:
            taken = options.pop(field.name)
            if (record := _record_kind(hints[field.name])) is not None:
                taken = tuple(_record_from_text(text, record, _flag(field.name, str)[0]) for text in taken)
            elif isinstance(value, tuple):
                taken = _split(taken, value)
            changes[field.name] = taken
    return replace(stage, **changes)  # type: ignore[type-var]


def _record_kind(hint: Any) -> type[Any] | None:
    """The record of which a field has several, as the tables of a list in a plan."""
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    return item if is_dataclass(item) and isinstance(item, type) else None


def _record_from_text(text: str, kind: type[Any], flag: str) -> Any:
    """A record from the pairs of a TOML table on one line.

    Raises:
        ConfigError: it is not that.
    """
    try:
        table, *others = tomllib.loads(f"record = {{ {text} }}").values()
        if others:
            raise ValueError("it is more than one record")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{flag}: '{text}' is not KEY = VALUE, … as in TOML ({error}); correct it") from error
    return record_from_table(table, kind, flag)


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
    if _record_kind(hint) is not None:
        return {"multiple": True, "metavar": "KEY = VALUE, …"}
    if isinstance(default, tuple):
        shown = ",".join(str(part) for part in default)
        return {"default": shown, "show_default": bool(shown), "metavar": "A,B,…"}
    if hint is bool:
        return {"default": default, "show_default": True}
    return {"type": CLICK_TYPES[hint], "default": default, "show_default": default != ""}
