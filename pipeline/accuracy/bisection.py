"""Look for the node at which a model in reduced precision loses what FP32 computes: in `validate`, and as `bisect`."""

from __future__ import annotations

import json
import math
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.analysis.bisection import Bisection, Suspect
from calibration.analysis.scale_check import scale_mismatches, target_of
from calibration.data.batches import Samples
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.patterns import nodes_by_name
from calibration.graph.watched_outputs import watch_tensors, write_watched
from calibration.histogram.collect import RunModel
from calibration.ranges.ranges import RangesRecord, spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.span import Span
from engines.contract import Runner
from pipeline.accuracy.tolerances import unlike_ranges
from pipeline.artifact import OnnxModel, Ranges, TfliteModel
from pipeline.engine_runner import (
    SIMULATOR,
    ModelRunner,
    few,
    fixed_batch,
    load_model,
    load_simulation,
    num_values_of_sample,
    padded,
    unpadded,
)
from pipeline.errors import ConfigError
from pipeline.json_record import finite

TFLITE_BISECTION = "pipeline.accuracy.tflite_bisection"
"""Loaded by name, since it runs what other models do without."""
NUM_KEPT = 5
"""Suspects in a verdict."""
LEAST_SAMPLES, MOST_VALUES = 4, 2e9
"""That FP32 computes in a search that nobody asked for: nine pictures of a detector at 800 x 608."""
APART_DB = 6.0
"""An engine that is so much worse than its model's simulation does not compute what the model says."""


@dataclass(frozen=True)
class Evidence:
    """What stands behind an engine that is judged: the ONNX model with its precision, FP32, and samples for both."""

    fp32: OnnxModel
    model: OnnxModel | None
    """None with native INT8, where the precision is in the engine alone."""
    samples: Samples
    ranges: Ranges | None
    """None where they are not known."""

    def digest(self) -> str:
        """SHA-256 (hex) digests of all of it."""
        parts = (self.fp32, self.model, self.samples, self.ranges)
        return " ".join("" if part is None else part.digest() for part in parts)

    @cached_property
    def ranges_record(self) -> RangesRecord | None:
        """The ranges, read for whom the model is placed; None where they are not known."""
        if self.ranges is None:
            return None
        target = "tensorrt" if self.model is None else target_of(model_from_file(self.model.path))
        return ranges_from_folder(self.ranges.path).read_for(target)

    def spans(self) -> dict[str, Span]:
        """The ranges by tensor; none where they are not known."""
        record = self.ranges_record
        return {} if record is None else spans_from_ranges(record)

    def scale_mismatches(self) -> list[str]:
        """What is wrong with the model's scales, a sentence each; the last says how many more there are."""
        if self.model is None or self.ranges is None:
            return []
        mismatches = scale_mismatches(model_from_file(self.model.path), self.spans())
        return _first([mismatch.sentence() for mismatch in mismatches])

    def unlike_ranges(self, derived: Mapping[str, Any]) -> list[str]:
        """A sentence if the ranges are far from those of the evaluation samples, which were read with tolerances."""
        return [] if self.ranges_record is None else unlike_ranges(derived, self.ranges_record)

    def modules(self) -> tuple[str, ...]:
        """What is loaded by name."""
        return ()

    def affordable(self, num_samples: int) -> int:
        """So many samples, or fewer where they would compute more than ``MOST_VALUES``: large ones take their time."""
        num_values = num_values_of_sample(self.fp32.path, self.samples)
        return min(num_samples, max(int(MOST_VALUES / num_values), LEAST_SAMPLES))

    def bisect(self, num_samples: int, runner: ModelRunner) -> BisectionResult:
        """Where the model loses what FP32 computes; as ``run_bisection``."""
        return run_bisection(self, num_samples, runner)


@dataclass(frozen=True)
class TfliteEvidence:
    """The same of a `.tflite` file: the float one that it was made of, itself, and samples for both."""

    fp32: TfliteModel
    model: TfliteModel
    samples: Samples
    ranges: Ranges | None
    """Of the float file; None where they are not known, or the file has no scales of them."""

    def digest(self) -> str:
        """SHA-256 (hex) digests of all of it."""
        parts = (self.fp32, self.model, self.samples, self.ranges)
        return " ".join("" if part is None else part.digest() for part in parts)

    def unlike_ranges(self, derived: Mapping[str, Any]) -> list[str]:
        """A sentence if the ranges are far from those of the samples that tolerances were derived on.

        They have other names than the ONNX model's, so the float file is run on these samples.
        """
        if self.ranges is None:
            return []
        record = ranges_from_folder(self.ranges.path)
        amaxes = import_module(TFLITE_BISECTION).amaxes_on(self, record, derived["indices"])
        return unlike_ranges({"method": record.method, "amaxes": amaxes}, record)

    def modules(self) -> tuple[str, ...]:
        """What is loaded by name."""
        return (TFLITE_BISECTION,)

    def scale_mismatches(self) -> list[str]:
        """What is wrong with the file's scales, a sentence each; the last says how many more there are."""
        return _first(list(import_module(TFLITE_BISECTION).scale_mismatches(self)))

    def affordable(self, num_samples: int) -> int:
        """So many samples: a file is run by LiteRT's own kernels, and FP32 beside it alone."""
        return num_samples

    def bisect(self, num_samples: int, _runner: ModelRunner) -> BisectionResult:
        """Where the file loses what the float one computes, by LiteRT's own kernels.

        Raises:
            Unavailable: ai-edge-litert or ai-edge-quantizer is not installed.
            EngineError: LiteRT refuses one of the files.
            ConfigError: they have no tensor in common.
        """
        result: BisectionResult = import_module(TFLITE_BISECTION).run_tflite_bisection(self, num_samples)
        return result


def _first(sentences: list[str]) -> list[str]:
    """The first of them; and how many tensors more they are about."""
    return sentences[:NUM_KEPT] + [f"so are {len(sentences) - NUM_KEPT} further tensors"] * (len(sentences) > NUM_KEPT)


@dataclass(frozen=True)
class Suggestion:
    """Exceptions for a tensor or some nodes, to be written into a plan or a command."""

    stage: str
    selector: str
    names: tuple[str, ...]
    change: str

    def _entries(self) -> list[tuple[str, str]]:
        return [(f"{self.selector} = {json.dumps(name, ensure_ascii=False)}", self.change) for name in self.names]

    def toml(self) -> str:
        """The lines for a plan."""
        return "\n".join("\n".join((f"[[{self.stage}.override]]", *entry)) for entry in self._entries())

    def flags(self) -> str:
        """The options for the verb, as a shell takes them."""
        options = (f"--override {shlex.quote(', '.join(entry))}" for entry in self._entries())
        return f"trtforge {self.stage} … {' '.join(options)}"


@dataclass(frozen=True)
class BisectionResult:
    """What was found."""

    suspects: tuple[Suspect, ...]
    """The most suspect first."""
    sqnrs_db: dict[str, float]
    """Output -> its SQNR in the simulation of the model."""
    num_samples: int
    layers: tuple[str, ...] = ()
    """The nodes of FP32 behind the first suspect."""
    is_integer: bool = False
    """Whether the model has Q/DQ nodes, or finds its scales at each run."""
    has_overrides: bool = True
    """Whether a plan can except a layer of such a model."""

    def suspicion(self, engine_sqnrs_db: dict[str, float], runner: str = "") -> str:
        """The likely layer in a sentence; or, where the simulated model is right and the engine is not, just that.

        ``runner``: what the engine ran in; empty: not known.
        """
        worse = [name for name, ratio in engine_sqnrs_db.items() if ratio + APART_DB < self.sqnrs_db.get(name, ratio)]
        on = f"on {self.num_samples} samples"
        if worse:
            why = (
                "ONNX Runtime's graph optimizations on this CPU compute it otherwise than the model says (the "
                "simulation computes the same model as it is written); the model is sound, and engines of other "
                "backends are judged by themselves"
                if runner == SIMULATOR
                else "the engine does not compute what its model says, or was given other inputs; check its build and "
                "the preprocessing, not the ranges"
            )
            return (
                f"its model, simulated {on}, keeps {self.sqnrs_db[worse[0]]:.1f} dB of SQNR at output '{worse[0]}' and "
                f"the engine {engine_sqnrs_db[worse[0]]:.1f} dB: {why}"
            )
        if self.sqnrs_db and all(math.isinf(ratio) and ratio > 0 for ratio in self.sqnrs_db.values()):
            return f"nothing is lost {on}: all outputs are those of FP32 to the bit"
        first = next(iter(self.suspects), None)
        if first is None or not first.is_clear():
            return f"no single layer stands out {on}: the loss is spread over many"
        return f"the likely layer, {on}: {first.sentence()}"

    def override(self) -> Suggestion | None:
        """What would take the loss away where a single layer stands out; None where none does."""
        first = next(iter(self.suspects), None)
        if first is None or not first.is_clear() or not self.has_overrides:
            return None
        if first.scale is None:
            stage = "quantize" if self.is_integer else "cast"
            return Suggestion(stage, "nodes", self.layers, 'precision = "fp32"') if self.layers else None
        low, high = min(first.scale.min, 0.0), max(first.scale.max, 0.0)
        change = f"range = [{low!r}, {high!r}]"
        return Suggestion("quantize", "tensors", (first.tensor,), change) if low < high else None

    def rows(self, num: int = NUM_KEPT) -> list[dict[str, Any]]:
        """The first suspects as plain data; what is not finite is None."""
        return [_plain(asdict(suspect)) for suspect in self.suspects[:num]]


def run_bisection(evidence: Evidence, num_samples: int, runner: ModelRunner) -> BisectionResult:
    """Run both models on so many samples, evenly spread, one at a time; memory is that of one sample's tensors.

    Raises:
        Unavailable: the runner is not installed.
        EngineError: it refuses one of the models.
        ConfigError: they have no tensor in common.
        DataError: the ranges cannot be read.
    """
    assert evidence.model is not None
    reference, candidate = (model_from_file(model.path) for model in (evidence.fp32, evidence.model))
    bisection = Bisection(reference, candidate)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))

        def open_model(model: onnx.ModelProto, names: list[str], source: Path | None) -> RunModel:
            watched = folder / f"{len(list(folder.iterdir()))}.onnx"
            if source is None:
                save_model(watch_tensors(model, names), watched)
            else:
                write_watched(source, model, names, watched)
            simulates = runner == "onnxruntime"
            loaded = load_simulation(watched) if simulates else load_model(watched, runner, 0)
            return _run(stack.enter_context(loaded))

        reference_names, candidate_names = bisection.watched()
        if not candidate_names:
            raise ConfigError(
                f"{evidence.model.path}: has no tensor of {evidence.fp32.path}, tensors are matched by name; give two "
                "models of one export"
            )
        runs = (
            open_model(reference, reference_names, evidence.fp32.path),
            open_model(candidate, candidate_names, evidence.model.path),
        )
        num = 0
        for num, feed in enumerate(few(evidence.samples, num_samples), start=1):  # noqa: B007  # Counts them.
            bisection.see(feed, runs[0])
        rounded = bisection.rounded()
        rounded_run = open_model(rounded.model, bisection.sound(), None)
        random = np.random.default_rng(0)
        for feed in few(evidence.samples, num_samples):
            bisection.add(feed, (*runs, rounded_run), random)
    suspects = tuple(bisection.suspects(evidence.spans()))
    is_integer = bisection.is_integer or bisection.is_dynamic
    return BisectionResult(suspects, bisection.sqnrs_db(), num, _layers(suspects, reference), is_integer)


def _layers(suspects: Sequence[Suspect], reference: onnx.ModelProto) -> tuple[str, ...]:
    """The nodes of FP32 behind the first suspect: that of its name, or else the one that makes its tensor.

    Of a Cast those that read the tensor: it is for them.
    """
    nodes = nodes_by_name(reference)
    for suspect in suspects[:1]:
        if suspect.operator == "Cast":
            return tuple(name for name, node in nodes.items() if suspect.tensor in node.input)
        makers = tuple(name for name, node in nodes.items() if suspect.tensor in node.output)
        return (suspect.node,) if suspect.node in nodes else makers
    return ()


def _run(runner: Runner) -> RunModel:
    fixed = fixed_batch(runner)
    return lambda feed: {n: unpadded(a, 1, fixed) for n, a in runner.infer(padded(feed, fixed)).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return finite(value) if isinstance(value, float) else value
