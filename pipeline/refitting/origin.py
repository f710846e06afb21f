"""Which engine of a store lacks new weights alone: of the same recipe, but for the values in the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from engines import backend
from engines.refit.network import GRAPH, NetworkGraph, graph_from_record, network_graph
from engines.refitting import RefittingBackend
from pipeline.artifact import Engine, ModelFile, OnnxModel
from pipeline.refitting.refit import REFITTABLE, Refit
from pipeline.stages.build import Build, BuildTarget
from pipeline.store import RECIPE, RESULT, Store, checked_result, digest_of_data, stage_name

log = logging.getLogger(__name__)


class Origins:
    """The engines of a store that a build could be spared by."""

    def __init__(self, store: Store, build: Build, model: ModelFile, target: BuildTarget) -> None:
        """Nothing is read yet."""
        self._store, self._build, self._model, self._target = store, build, model, target

    def best(self) -> Engine | None:
        """The one to refit: one of which that is done already, or else the one that the least weights are other than
        in, the youngest of several; None where none will do.

        None too where the build itself is in the store.
        """
        build = self._build
        if build.weights != REFITTABLE or not isinstance(backend(self._target.backend), RefittingBackend):
            return None
        if not isinstance(self._model, OnnxModel) or build.is_native(self._target.backend, self._target.precision):
            return None
        if self._is_kept(self._recipe):
            return None
        refit, alike = Refit(), list(self._alike())
        for engine, _ in alike:
            if self._is_kept(self._store.recipe(refit, engine, self._model)):
                return engine
        return self._closest(alike) if alike else None

    def _closest(self, alike: Sequence[tuple[Engine, NetworkGraph]]) -> Engine | None:
        """Of those whose model has this one's graph."""
        graph = network_graph(self._model.path)
        fitting = [(engine, before) for engine, before in alike if before.digest == graph.digest]
        nums = [len(graph.changed_from(before)) for _, before in fitting]
        return fitting[nums.index(min(nums))][0] if fitting else None

    @cached_property
    def _recipe(self) -> dict[str, Any]:
        return self._store.recipe(self._build, self._model, self._target)

    def _is_kept(self, recipe: Mapping[str, Any]) -> bool:
        return (self._store.folder / str(recipe["stage"]) / digest_of_data(recipe) / RESULT).is_file()

    def _alike(self) -> Iterator[tuple[Engine, NetworkGraph]]:
        """Refittable engines of the same recipe, but for the model, and their graphs; the youngest first."""
        wanted = _without_model(self._recipe)
        files = (self._store.folder / stage_name(self._build)).glob(f"*/{RECIPE}")
        for file in sorted(files, key=lambda file: (-file.stat().st_mtime, file)):
            try:
                if _without_model(json.loads(file.read_text(encoding="utf-8"))) != wanted:
                    continue
                record = json.loads(file.with_name("record.json").read_text(encoding="utf-8"))
                if record["options"]["weights"] != REFITTABLE:
                    continue
                graph = graph_from_record(record[GRAPH])
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                log.info("%s: cannot be read (%s); it is not refitted", file.parent, error)
                continue
            engine, _ = checked_result(file.parent)
            if isinstance(engine, Engine):
                yield engine, graph


def _without_model(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A build's recipe without its first input."""
    return {**recipe, "inputs": list(recipe["inputs"])[1:]}
