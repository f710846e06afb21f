"""Show how a result was made, back to the trained network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click

from pipeline.command.options import STORE
from pipeline.errors import ConfigError
from pipeline.spelling import echo
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
    echo(f"{indent}{recipe['stage']} {name}" + (" (as above)" if entry in shown else f"  {entry}"))
    if entry in shown:
        return
    shown.add(entry)
    for what in ("options", "versions"):
        words = ", ".join(f"{key} {json.dumps(value)}" for key, value in recipe[what].items())
        if words:
            echo(f"{indent}  {what}: {words}")
    inputs = [*recipe["inputs"], *recipe["named_inputs"].values()]
    made, outside = _origins(inputs, makers)
    for value in outside:
        echo(f"{indent}  from outside: {json.dumps(value)}")
    for other in made:
        _show(other, makers, depth + 1, shown)


def _origins(item: object, makers: Mapping[str, Path]) -> tuple[list[Path], list[object]]:
    """The results that stand anywhere in a recipe's inputs, and all else."""
    if isinstance(item, dict) and item.get("digest") in makers:
        return [makers[item["digest"]]], []
    if isinstance(item, (list, dict)) and "digest" not in item:
        parts = list(item.values()) if isinstance(item, dict) else item
        origins = [_origins(part, makers) for part in parts]
        if any(made for made, _ in origins) or isinstance(item, list):
            return [path for made, _ in origins for path in made], [value for _, rest in origins for value in rest]
    return [], [item]
