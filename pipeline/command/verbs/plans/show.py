"""Show how a result was made, back to the trained network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from pipeline.command.options import STORE
from pipeline.errors import ConfigError
from pipeline.store import Store

LENGTH_OF_DIGEST = 64
"""Hexadecimal digits of SHA-256; the names of measurements are shorter, and shown whole."""


@click.command()
@click.argument("digest")
@STORE
def show(digest: str, store: Path) -> None:
    """Print what the result DIGEST was made from, back to the trained network; its first characters are enough."""
    if not store.is_dir():
        raise ConfigError(f"{store}: there is no store; run a plan first, or name its store with --store")
    opened = Store(store)
    _show(opened.find(digest), opened.makers(), 0, set())


def _show(entry: Path, makers: Mapping[str, Path], depth: int, shown: set[Path]) -> None:
    """One result, and below it, indented, what it was made from."""
    recipe = json.loads((entry / "recipe.json").read_text(encoding="utf-8"))
    indent = "  " * depth
    name = entry.name[:12] if len(entry.name) == LENGTH_OF_DIGEST else entry.name
    click.echo(f"{indent}{recipe['stage']} {name}" + (" (as above)" if entry in shown else f"  {entry}"))
    if entry in shown:
        return
    shown.add(entry)
    for what in ("options", "versions"):
        words = ", ".join(f"{key} {json.dumps(value)}" for key, value in recipe[what].items())
        if words:
            click.echo(f"{indent}  {what}: {words}")
    given = [*recipe["inputs"], *recipe["named_inputs"].values()]
    made, outside = _origins(given, makers)
    for value in outside:
        click.echo(f"{indent}  from outside: {json.dumps(value)}")
    for other in made:
        _show(other, makers, depth + 1, shown)


def _origins(given: object, makers: Mapping[str, Path]) -> tuple[list[Path], list[object]]:
    """The results that stand anywhere in a recipe's inputs, and all else."""
    if isinstance(given, dict) and given.get("digest") in makers:
        return [makers[given["digest"]]], []
    if isinstance(given, (list, dict)) and "digest" not in given:
        parts = list(given.values()) if isinstance(given, dict) else given
        found = [_origins(part, makers) for part in parts]
        if any(made for made, _ in found) or isinstance(given, list):
            return [path for made, _ in found for path in made], [value for _, rest in found for value in rest]
    return [], [given]
