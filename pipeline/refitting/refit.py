"""Give an engine the weights of another model of the same graph, in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from engines import BACKENDS, backend, module_of
from engines.errors import EngineError
from engines.refit.network import GRAPH, NetworkGraph, first_difference, graph_from_record, names_text, network_graph
from engines.refitting import ChangedWeights, RefitOutcome, RefittingBackend
from pipeline.artifact import Engine, ModelFile, OnnxModel, sha256_of
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine import child_process
from pipeline.output import REPLACED, SHA256, record_to_keep
from pipeline.stages.build import SEVERAL

REFITTABLE, STRIPPED, FIXED = "refittable", "stripped", "fixed"
"""Of ``BuildOptions.weights``: any weights can come in, those that it was built from alone, none."""
ASK_FOR = 'build it with weights = "refittable" in [build], or with `trtforge build --weights refittable`'
NO_RECORD = (
    "has no record beside it, which says what graph it was built from; give an engine that `trtforge build` wrote, "
    "with its record"
)
REFITTED_FROM = "refitted_from"
"""In an engine's record: the engine and the model that it was made of, and what went in."""


@dataclass(frozen=True)
class Refit:
    """Give an engine the weights of another model of the same graph, in a process of its own.

    The engine's record, `record.json` beside it, is that of the engine before, with the model and the engine that it
    was made of.
    """

    def versions(self, engine: Engine, _model: object) -> dict[str, str]:
        """Everything below that the engine depends on."""
        return backend(engine.backend).versions()

    def modules(self, engine: Engine, _model: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(engine.backend),)

    def __call__(self, out: Path, engine: Engine, model: ModelFile) -> Engine:
        """Write the engine with the model's weights, and its record.

        Raises:
            ConfigError: the engine cannot be refitted, or the model has another graph; nothing is loaded.
            Unavailable: there is no GPU, or not the one, or not the library, that the engine was built for.
            EngineError: the library refuses the weights, or cannot replace all that have changed.
            StageError: it crashed.
        """
        record = record_to_keep(engine.path)
        before = refittable_graph(engine, record)
        after = graph_of(model)
        changed = changed_weights(engine, record, (before, after), model)
        runtime = backend(engine.backend)
        assert isinstance(runtime, RefittingBackend)
        if reason := runtime.why_not_build():
            raise Unavailable(reason)
        made = out / f"model{runtime.SUFFIX}"
        what = f"refit {record.get('precision', '')} for {engine.backend}"
        files = (engine.path, model.path, made)
        outcome = child_process.call(out / "refit.log", what, _refit, engine.backend, files, changed)
        whole = refitted_record(record, outcome) | {
            "made_from": {"model": model.digest(), "engine": engine.digest(), "calibration": ""},
            REFITTED_FROM: {
                "engine_sha256": sha256_of(engine.path),
                "model_sha256": sha256_of(model.path),
                "num_weights": outcome.num_weights,
                "num_changed": len(changed),
                "seconds": outcome.seconds,
            },
            GRAPH: after.record(),
        }
        (out / "record.json").write_text(json.dumps(whole, indent=1, sort_keys=True))
        (out / "notes.json").write_text(json.dumps(whole["notes"]))
        return replace(engine, path=made)


def refittable_graph(engine: Engine, record: Mapping[str, Any]) -> NetworkGraph:
    """The network that an engine was built from.

    Raises:
        ConfigError: it cannot be refitted, by its record; the sentence says what to do.
    """
    where = engine.path
    if not isinstance(backend(engine.backend), RefittingBackend):
        can = " and ".join(name for name in BACKENDS if isinstance(backend(name), RefittingBackend))
        raise ConfigError(
            f"{where}: is an engine for {engine.backend}, only those for {can} can be refitted; build one from the "
            "model instead"
        )
    if not record:
        raise ConfigError(f"{where}: {NO_RECORD}")
    options = record.get("options", {})
    weights = options.get("weights", FIXED)
    if weights == FIXED:
        raise ConfigError(f'{where}: was built with weights = "{FIXED}", so that it cannot be refitted; {ASK_FOR}')
    if options.get("native"):
        raise ConfigError(
            f"{where}: its INT8 is of TensorRT's calibrator, whose scales are of the old weights; build it again, or "
            'take int8 = "qdq", whose scales are in the model'
        )
    try:
        return graph_from_record(record[GRAPH])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{where}: its record does not say what graph it was built from ({type(error).__name__}); build it again"
        ) from error


def graph_of(model: ModelFile) -> NetworkGraph:
    """The network in a model's file.

    Raises:
        ConfigError: it is no ONNX file.
        EngineError: its weights cannot be read.
    """
    if not isinstance(model, OnnxModel):
        raise ConfigError(f"{model.path}: is no ONNX file, of which engines that can be refitted are built; give one")
    return network_graph(model.path)


def changed_weights(
    engine: Engine, record: Mapping[str, Any], graphs: tuple[NetworkGraph, NetworkGraph], model: ModelFile
) -> ChangedWeights:
    """The weights that are others than in the engine, and who reads them.

    Raises:
        ConfigError: the model differs in more than the values of weights, or the engine takes its own weights alone.
    """
    before, after = graphs
    if difference := first_difference(before, after):
        raise ConfigError(
            f"{model.path}: has another graph than {engine.path} was built from: {difference}; build an engine from it"
        )
    changed = after.changed_from(before)
    if changed and record["options"]["weights"] == STRIPPED:
        raise ConfigError(
            f"{model.path}: weights {names_text(changed)} are others than {engine.path} was built from; an engine "
            f"without weights is filled with those alone: give that model, or {ASK_FOR}"
        )
    return {name: after.readers.get(name, ()) for name in changed}


def refitted_record(record: Mapping[str, Any], outcome: RefitOutcome) -> dict[str, Any]:
    """The record of an engine, as it is after a refit."""
    gone = {SHA256, REPLACED, SEVERAL, *(field.name for field in fields(Engine))} - {"backend"}
    whole = {key: value for key, value in record.items() if key not in gone}
    options = {**record["options"], "weights": REFITTABLE if outcome.is_refittable else FIXED}
    sentence = f"Refitted with {outcome.num_weights} weights in {outcome.seconds:.1f} s, and not built for them."
    notes = [*record.get("notes", ()), *outcome.notes, sentence]
    new = {"size_bytes": outcome.size_bytes, "options": options, "notes": notes}
    if outcome.layers:
        seen = asdict(outcome)
        new |= {key: seen[key] for key in ("layers", "layers_from", "num_int8")}
    return whole | new


def _refit(name: str, files: tuple[Path, Path, Path], changed: ChangedWeights) -> RefitOutcome:
    runtime = backend(name)
    if not isinstance(runtime, RefittingBackend):
        raise EngineError(f"{name}: its engines cannot be refitted")
    return runtime.refit(*files, changed)
