"""--on as a verb takes it; what it does is in ``on_devices.py``, with all that a plan needs and a file does not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from pipeline.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

FLAGS = ("--on", "--on-python", "--clean")


@dataclass(frozen=True)
class OnOptions:
    """Where, and how."""

    addresses: tuple[str, ...] = ()
    python: str = ""
    clean: bool = False

    def __bool__(self) -> bool:
        """Whether another machine is named."""
        return bool(self.addresses)


def on_options(function: F) -> F:
    """--on and what belongs to it, which the verb gets as ``on``."""

    @click.option(
        "--on",
        "addresses",
        multiple=True,
        metavar="USER@HOST,…",
        help="do it on that machine by ssh, and bring what it made here; several at once with commas; repeatable",
    )
    @click.option(
        "--on-python", default="", metavar="PATH", help="with --on: interpreter there that has all that is needed"
    )
    @click.option("--clean", is_flag=True, help="with --on: remove ~/.trtforge there at the end, and all that is in it")
    @functools.wraps(function)
    def with_on(*arguments: Any, addresses: tuple[str, ...], on_python: str, clean: bool, **options: Any) -> Any:
        if not addresses and (on_python or clean):
            raise ConfigError(f"{'--on-python' if on_python else '--clean'}: has an effect only with --on; drop it")
        return function(*arguments, on=OnOptions(addresses, on_python, clean), **options)

    return with_on  # type: ignore[return-value]  # But for the options it is the same.


def refuse_on(on: OnOptions, path: Path) -> None:
    """Raise ConfigError if --on stands beside something that is no plan."""
    if on:
        raise ConfigError(f"--on: takes a plan (.toml), {path} is none; write one with `trtforge init`")
