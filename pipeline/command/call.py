"""A verb called from Python: its options are keywords, read by its own parser; its outcome is returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from os import PathLike
from typing import Any

import click

from pipeline.command.cli import trtforge
from pipeline.command.options import Caller
from pipeline.command.outcomes import VerbOutcome
from pipeline.command.plan_run import remember_digests
from pipeline.errors import ConfigError, as_sentences
from pipeline.spelling import nearest


def outcome_of(verb: str, paths: Sequence[PathLike[str] | str], keywords: Mapping[str, Any]) -> VerbOutcome:
    """What a verb comes to; nothing is printed on stdout.

    Args:
        verb: such as ``calibrate``.
        paths: its arguments: files, or a plan.
        keywords: its options by their names with ``_`` for ``-``, and ``progress``, which says on stderr what a plan
            makes; see ``words_of`` for the values.

    Raises:
        ConfigError: the verb has no such option, or it takes no such value.
    """
    parent = click.Context(trtforge, info_name="trtforge", **trtforge.context_settings)
    command = trtforge.get_command(parent, verb)
    assert command is not None, "only verbs are asked for"
    options = dict(keywords)
    caller = Caller(quiet=not options.pop("progress", True))
    words = [word for name, value in options.items() for word in words_of(command, name, value)]
    remember_digests()
    try:
        with (
            as_sentences(),
            command.make_context(verb, [*words, "--", *map(str, paths)], parent=parent, obj=caller) as context,
        ):
            outcome = command.invoke(context)
    except click.ClickException as error:
        raise ConfigError(f"{verb}: {error.format_message()}") from error
    assert isinstance(outcome, VerbOutcome), "verbs return what they came to"
    return outcome


def words_of(command: click.Command, name: str, value: Any) -> list[str]:
    """An option as it stands on the command line.

    Args:
        command: of the verb.
        name: as ``min_shapes`` for ``--min-shapes``.
        value: a text, number or path as it is; of a switch, whether it is on; a list for an option that can be repeated
            or takes names with commas between; a mapping for NAME=KEY and for NAME:1x32x32x3; None: not given.

    Raises:
        ConfigError: there is no such option, or it takes no such value.
    """
    options = {
        flag.lstrip("-").replace("-", "_"): option
        for option in command.params
        if isinstance(option, click.Option)
        for flag in option.opts
        if flag.startswith("--")
    }
    if name not in options:
        raise ConfigError(f"{command.name}: has no option '{name}'{nearest(name, list(options))}")
    option, flag = options[name], f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if option.is_flag:
        if value not in (True, False):
            raise ConfigError(f"{command.name}: {name} is {value!r:.60}, a switch is True or False; correct it")
        return [flag] if value else option.secondary_opts[:1]
    items = value.values() if isinstance(value, Mapping) else [value]
    if odd := [item for item in items if not _is_plain(item)]:
        raise ConfigError(
            f"{command.name}: {name} is of {type(odd[0]).__name__}, texts, numbers and paths are expected, or lists of "
            "them; save an array as .npz, and name the file"
        )
    if isinstance(value, Mapping):
        sign = ":" if ":" in (option.metavar or "") else "="
        value = [f"{key}{sign}{_text(item, 'x')}" for key, item in value.items()]
    if option.multiple and not isinstance(value, str):
        return [f"{flag}={item}" for item in value]
    return [f"{flag}={_text(value, ',')}"]


def _is_plain(value: Any, *, is_item: bool = False) -> bool:
    """Whether it is a text, a number or a path, or a list of those."""
    if isinstance(value, (str, Number, PathLike)):
        return True
    is_list = isinstance(value, Iterable) and not isinstance(value, (bytes, Mapping))
    return is_list and not is_item and all(_is_plain(item, is_item=True) for item in value)


def _text(value: Any, between: str) -> str:
    """A list as one word."""
    is_list = isinstance(value, Iterable) and not isinstance(value, (str, PathLike))
    return between.join(map(str, value)) if is_list else str(value)
