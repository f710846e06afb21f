"""Build an engine from an ONNX model, in a process of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engines import backend
from engines.contract import BuildOptions, EngineRecord, Precision, ShapeRange
from pipeline import isolate
from pipeline.artifact import Engine, OnnxModel
from pipeline.errors import ConfigError, Unavailable
from pipeline.option import check_bounds, option
from pipeline.progress import waiting


@dataclass(frozen=True)
class Target:
    """What an engine is built for: a backend, the precision that the model was written in, and the input shapes."""

    backend: str
    precision: Precision
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)

    def batch_bounds(self) -> tuple[int, int]:
        """The smallest and largest batch that the shapes allow; zeros where nothing bounds it."""
        if not self.shapes:
            return 0, 0
        return max(s.min[0] for s in self.shapes.values()), min(s.max[0] for s in self.shapes.values())


@dataclass(frozen=True)
class Build:
    """Build an engine from an ONNX model, in a process of its own.

    The engine's record, `record.json` beside it, says with what it was built and how many of its convolutions and
    matrix products run in integer arithmetic.
    """

    workspace_mib: int = option(1024, "upper bound for the builder's scratch memory, MiB")
    optimization_level: int = option(3, "TensorRT's builder optimization level, 0 to 5")
    compute_capabilities: tuple[str, ...] = option((), "targets of an ahead-of-time build, such as 8.6")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, workspace_mib=(1, math.inf), optimization_level=(0, 5))

    def versions(self, _model: object, target: Target) -> dict[str, str]:
        """Everything below that the engine depends on: runtime, and device where the backend builds for one."""
        return backend(target.backend).versions()

    def __call__(self, out: Path, model: OnnxModel, target: Target) -> Engine:
        """Write the engine and its record.

        Raises:
            ConfigError: a shape range is not min <= opt <= max.
            Unavailable: the backend is not installed, or cannot do this here.
            EngineError: the backend refused the model.
            StageError: the builder crashed or was killed.
        """
        for name, shape in target.shapes.items():
            check_shape_range(name, shape)
        runtime = backend(target.backend)
        if reason := runtime.why_not_build():
            raise Unavailable(reason)
        engine = out / f"model{runtime.SUFFIX}"
        options = BuildOptions(
            precision=target.precision,
            shapes=target.shapes,
            workspace_mib=self.workspace_mib,
            optimization_level=self.optimization_level,
            compute_capabilities=self.compute_capabilities if target.backend == "tensorrt_rtx" else (),
        )
        what = f"build {target.precision} for {target.backend}"
        with waiting(what):
            record = isolate.call(out / "build.log", what, _build, model.path, engine, target.backend, options)
        (out / "record.json").write_text(json.dumps(asdict(record), indent=1, sort_keys=True))
        (out / "notes.json").write_text(json.dumps(list(record.notes)))
        smallest, largest = target.batch_bounds()
        return Engine(engine, backend=target.backend, min_batch=smallest, max_batch=largest)


def check_shape_range(name: str, shape: ShapeRange) -> None:
    """Raise ConfigError unless min <= opt <= max, dimension by dimension, all positive and of one rank."""
    ranks = {len(shape.min), len(shape.opt), len(shape.max)}
    if len(ranks) != 1:
        raise ConfigError(f"shapes of '{name}': min, opt and max have {sorted(ranks)} dimensions; give equally many")
    for low, usual, high in zip(shape.min, shape.opt, shape.max):
        if not 0 < low <= usual <= high:
            raise ConfigError(
                f"shapes of '{name}': min {shape.min}, opt {shape.opt}, max {shape.max} are not positive and in order; "
                "every dimension needs 0 < min <= opt <= max"
            )


def _build(model: Path, engine: Path, name: str, options: BuildOptions) -> EngineRecord:
    return backend(name).build(model, engine, options)
