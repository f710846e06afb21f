"""Why a result has to be made again: what differs between its recipe and that of the last one like it."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.plan import Plan
from pipeline.refitting.refit import Refit
from pipeline.stages.build import Build
from pipeline.store import RECIPE, RESULT, Missing, stage_name

log = logging.getLogger(__name__)

REFIT, BUILD = stage_name(Refit()), stage_name(Build())
ONLY_WEIGHTS = "only weights changed, so that the engine is refitted and not built"

Recipe = Mapping[str, Any]


@dataclass(frozen=True)
class Kept:
    """A result that is in the store."""

    folder: Path
    recipe: Recipe
    content: str
    inputs: tuple[str, ...]
    """A few words on each."""
    made: float
    """When, in seconds since 1970; the time of its record is that of its last use."""

    @cached_property
    def leaves(self) -> frozenset[tuple[str, str]]:
        """Key and value of all plain values in the recipe."""
        return leaves_of(self.recipe)

    @cached_property
    def places(self) -> frozenset[str]:
        """Where its inputs lie."""
        return frozenset(filter(None, map(_place, self.inputs)))


class History:
    """The results of a store, each read once."""

    def __init__(self, store: Path) -> None:
        """Read nothing yet."""
        self._store = store
        self._stages: dict[str, tuple[Kept, ...]] = {}

    def results(self, stage: str) -> tuple[Kept, ...]:
        """All results of a stage, the youngest first; damaged ones are left out."""
        if stage not in self._stages:
            folders = [file.parent for file in (self._store / stage).glob("*/recipe.json")]
            whole = filter(None, map(_kept, folders))
            self._stages[stage] = tuple(sorted(whole, key=lambda result: -result.made))
        return self._stages[stage]

    def maker(self, content: str) -> Kept | None:
        """The result of that content; None where it is from outside, or gone."""
        return self._makers.get(content)

    @cached_property
    def _makers(self) -> dict[str, Kept]:
        stages = [folder.name for folder in sorted(self._store.glob("*/"))]
        return {result.content: result for stage in stages for result in self.results(stage)}

    def last_like(self, missing: Missing, known: Sequence[str] = ()) -> Kept | None:
        """The result of the same stage whose recipe shares most with the missing one's.

        Of several one that begins with the same model or engine, and of those the youngest.

        Without an input of the same content or from the same place it would be one of another model.

        Args:
            missing: what it is like.
            known: digests of recipes of which one is meant, if there is one of that stage.
        """
        results = [result for result in self.results(missing.stage) if result.folder.name != missing.digest]
        results = [result for result in results if result.folder.name in known] or results
        leaves, places = leaves_of(missing.recipe), set(filter(None, map(_place, missing.inputs)))
        digests = {leaf for leaf in leaves if leaf[0].endswith("digest")}
        related = [result for result in results if digests & result.leaves or places & result.places]
        first = missing.recipe.get("inputs", [])[:1]
        return max(
            related,
            key=lambda result: (len(leaves & result.leaves), result.recipe.get("inputs", [])[:1] == first),
            default=None,
        )


def why_missing(missing: Missing, history: History, known: Sequence[str] = ()) -> list[str]:
    """What changed since the last result of that kind, a sentence each, the first cause of all.

    Args:
        missing: what has to be made.
        history: the results of the store.
        known: digests of recipes of the last run, where they are known.
    """
    if missing.stage == REFIT:
        return _why_refitted(missing.recipe, missing.inputs, history)
    last = history.last_like(missing, known)
    if last is None:
        return [f"{missing.stage}: nothing like it is in the store"]
    return differences(last, missing.recipe, missing.inputs, history) or [f"{missing.stage}: its last result is gone"]


def why_made(folder: Path, history: History) -> list[str]:
    """What changed between a result and the last one like it that is older.

    Raises:
        OSError, ValueError, KeyError: the result is damaged.
    """
    here = _kept(folder)
    assert here is not None
    stage = here.recipe["stage"]
    if stage == REFIT:
        return _why_refitted(here.recipe, here.inputs, history)
    older = [result.folder.name for result in history.results(stage) if result.made < here.made]
    last = history.last_like(Missing(stage, folder.name, "", here.recipe, here.inputs), older) if older else None
    if last is None:
        return [f"{stage}: it was the first of its kind in the store"]
    return differences(last, here.recipe, here.inputs, history)


def _why_refitted(recipe: Recipe, inputs: Sequence[str], history: History) -> list[str]:
    """What changed since the engine was built that got new weights, and that it got them."""
    (engine, model) = recipe["inputs"]
    built = history.maker(engine["digest"])
    if built is None or built.recipe["stage"] != BUILD:
        return [ONLY_WEIGHTS]
    as_built = {**built.recipe, "inputs": [model, *built.recipe["inputs"][1:]]}
    changes = differences(built, as_built, (*inputs[1:2], *built.inputs[1:]), history)
    return [*changes, ONLY_WEIGHTS] if changes else ["it was built without weights, and is filled with them"]


def differences(last: Kept, recipe: Recipe, inputs: Sequence[str], history: History) -> list[str]:
    """What differs between a kept result's recipe and another one, followed back through inputs that were made here.

    Args:
        last: the earlier one.
        recipe: of the later one.
        inputs: a few words on each of the later one's inputs; empty where they are not known.
        history: for what inputs were made from.
    """
    stage = recipe["stage"]
    sentences = [
        f"{name} {last.recipe['versions'].get(name, 'none')} -> {recipe['versions'].get(name, 'none')}"
        for name in sorted({**last.recipe["versions"], **recipe["versions"]})
        if last.recipe["versions"].get(name) != recipe["versions"].get(name)
    ]
    before, after = dict(_leaves(last.recipe["options"], "")), dict(_leaves(recipe["options"], ""))
    sentences += [
        f"[{stage}] {key} {before.get(key, 'none')} -> {after.get(key, 'none')}"
        for key in sorted({**before, **after})
        if before.get(key) != after.get(key)
    ]
    if last.recipe["source"] != recipe["source"]:
        sentences.append(f"trtforge's own {stage} changed")
    unexplained: list[str] = []
    for place, (old, new) in enumerate(zip(last.recipe["inputs"], recipe["inputs"])):
        if old != new:
            words = [part[place] if place < len(part) else "" for part in (last.inputs, inputs)]
            causes = list(_differences_of_input(_Input(input_name(stage, place), old, new, words), stage, history))
            sentences += causes
            unexplained += [] if causes else [f"{stage}: its {input_name(stage, place)} changed"]
    return list(dict.fromkeys(sentences or unexplained))


@dataclass(frozen=True)
class _Input:
    """An input that differs."""

    name: str
    old: Any
    new: Any
    words: Sequence[str]
    """On the old one, and on the new one."""


def _differences_of_input(differing: _Input, stage: str, history: History) -> Iterator[str]:
    before, after = dict(_leaves(differing.old, "")), dict(_leaves(differing.new, ""))
    for key in sorted({**before, **after}):
        was, is_now = before.get(key, "none"), after.get(key, "none")
        if was == is_now:
            continue
        if key.rpartition(".")[2] != "digest":
            yield f"{stage}: {key} {was} -> {is_now}"
            continue
        old, new = history.maker(was), history.maker(is_now)
        if old is not None and new is not None:
            yield from differences(old, new.recipe, new.inputs, history)
        elif any(differing.words):
            yield f"{stage}: its {differing.name} changed{_beside(*differing.words)}"


def _beside(old: str, new: str) -> str:
    return f": {old} -> {new}" if old and new and old != new else f", {old or new}"


def input_name(stage: str, place: int) -> str:
    """What a stage calls its input of that place, in words."""
    takes = getattr(Plan, stage, None)
    names = list(inspect.signature(takes).parameters)[1:] if callable(takes) else []  # After the folder.
    return names[place] if place < len(names) else f"input {place + 1}"


def _place(words: str) -> str:
    """Of a few words on an input, where it lies."""
    return words.partition(" (")[0]


def leaves_of(recipe: Recipe) -> frozenset[tuple[str, str]]:
    """Key and value of all plain values in a recipe."""
    return frozenset(_leaves(recipe, ""))


def _leaves(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{prefix}[{index}]")
    else:
        yield prefix, json.dumps(value) if not isinstance(value, str) else value


def _kept(folder: Path) -> Kept | None:
    """A result, or None where it is damaged, which `run` mends."""
    try:
        file = folder / RECIPE
        recipe = json.loads(file.read_text(encoding="utf-8"))
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        inputs = tuple(result.get("inputs", ()))  # Earlier versions did not keep them.
        return Kept(folder, recipe, result["content"], inputs, file.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.info("%s: cannot be read (%s); it is skipped", folder, error)
        return None
