"""The engines of a run: refitted where that does, else built; and those without weights, filled."""

from __future__ import annotations

import logging
from pathlib import Path

from engines import backend
from engines.refitting import RefittingBackend
from pipeline.artifact import Engine
from pipeline.errors import EngineError, StageError
from pipeline.refitting.origin import Origins
from pipeline.refitting.refit import STRIPPED, Refit
from pipeline.results import Results, Variant
from pipeline.signing.statement import sign_in_store
from pipeline.stages.build import Build, BuildTarget
from pipeline.store import Store

log = logging.getLogger(__name__)


def built_or_refitted(store: Store, build: Build, made: Results, variant: Variant, target: BuildTarget) -> Engine:
    """The engine of a variant's model, which is made already.

    Where the store has a refittable one of the same recipe, but for the values of weights, that one is refitted. Where
    it cannot be, it is built, and the run says so.
    """
    model = made.models[variant]
    if (origin := Origins(store, build, model, target).best()) is not None:
        try:
            return store.run(Refit(), origin, model)
        except (EngineError, StageError) as error:  # It was refused, or the library crashed.
            note = f"{variant.name}: is built anew, though only weights changed: it could not be refitted ({error})"
            log.warning("%s", note)
            made.notes.append(note)
    calibration_data = build.calibration(target, made.network_of(variant).ranges, made.calibration)
    return store.run(build, model, target, *calibration_data)


def fill_engines(store: Store, build: Build, made: Results, signing_key: Path | None) -> None:
    """Those that were built without weights get them: nothing else runs. They are signed as others are."""
    for variant, engine in made.engines.items():
        if build.weights == STRIPPED and isinstance(backend(variant.backend), RefittingBackend):
            with store.about(variant.name):
                made.engines[variant] = filled = store.run(Refit(), engine, made.models[variant])
                if signing_key is not None:
                    sign_in_store(filled.path, signing_key, store.folder)
