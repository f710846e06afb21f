"""Build an engine from an ONNX model, in a process of its own."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from calibration.data.batches import Samples
from engines import BACKENDS, backend, module_of
from engines.contract import BuildOptions, EngineRecord, GivenScales, Hardware, ShapeRange, Weights
from engines.cuda.libraries import SONAMES
from engines.litert.edgetpu_compiler import COMPILER, compiler_version
from engines.nvinfer.timing_cache import timing_cache_path
from engines.plugin_library import FIELD, sha256_of_library
from engines.precision import precision_named
from engines.refit.network import GRAPH, network_graph
from pipeline.artifact import Engine, ModelFile, OnnxModel, Ranges, sha256_of
from pipeline.builder.native_int8 import batches_for_calibrator, scales_for_calibrator
from pipeline.builder.plugins import check_names, plugin_files
from pipeline.builder.retries import attempts, build_with_retries
from pipeline.builder.several import BuildTimes, compared, example_feed, sentence, times_in_turns
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine import child_process
from pipeline.machine.jetson import l4t, power_mode
from pipeline.machine.progress import Phases, waiting
from pipeline.machine.user_cache import user_cache
from pipeline.option import check_bounds, option
from pipeline.spelling import with_and
from pipeline.stage import Stage

SEVERAL = "builds"
"""The option of this stage, named in ``OBEYS`` by those whose builds differ, and the folder of the builds."""
NATIVE = "native"
"""The field of ``BuildOptions`` by which INT8 comes from TensorRT's own calibrator."""
BEHIND = dict.fromkeys(("int8", "native_scales", "native_batch_size"), NATIVE)
"""Options of this stage that become another field of ``BuildOptions``."""
MAY_IDLE = (
    "workspace_mib", "optimization_level", "int8", "native_scales", "native_batch_size", "external_kernels",
    "cuda_graph", "timing_cache",
)  # fmt: skip
"""Options that a plan may keep although none of its backends takes them: how TensorRT gets at what others have too."""


@dataclass(frozen=True)
class BuildTarget:
    """What an engine is built for: a backend, the precision that the model was written in, and the input shapes."""

    backend: str
    precision: str
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()
    """Further optimization profiles."""

    def batch_bounds(self) -> tuple[int, int]:
        """The smallest and largest batch that some profile holds; zeros where nothing bounds it."""
        profiles = [ranges.values() for ranges in (self.shapes, *self.more_shapes) if ranges]
        if not profiles:
            return 0, 0
        smallest = min(max(shape.min[0] for shape in shapes) for shapes in profiles)
        return smallest, max(min(shape.max[0] for shape in shapes) for shapes in profiles)


@dataclass(frozen=True)
class Build(Stage):
    """Build an engine from an ONNX model, in a process of its own.

    The engine's record, `record.json` beside it, says with what it was built and how many of its convolutions and
    matrix products run in integer arithmetic. A build that is killed or runs out of memory is tried again with less.
    """

    NEEDS_ENGINES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "engines"

    workspace_mib: int = option(1024, "upper limit of the builder's scratch memory (workspace), in MiB")
    optimization_level: int = option(3, "TensorRT's builder optimization level, 0 to 5")
    compute_capabilities: tuple[str, ...] = option(
        (), "for TensorRT for RTX: compute capabilities to build for, such as 8.6"
    )
    int8: Literal["qdq", "native"] = option(
        "qdq", "for TensorRT: INT8 by the model's Q/DQ nodes, or by TensorRT's calibrator (up to 10, and for DLA)"
    )
    native_scales: Literal["ranges", "tensorrt"] = option(
        "ranges", "for native INT8: scales from `trtforge calibrate`, or computed by TensorRT from calibration samples"
    )
    native_batch_size: int = option(8, "for native scales by TensorRT: batch size of its calibrator")
    hardware: Hardware = option(
        "exact", "for TensorRT: hardware compatibility, which GPUs can run the engine besides this one"
    )
    version_compatible: bool = option(False, "for TensorRT: build an engine that later versions can run too")
    weights: Weights = option(
        "fixed", "for TensorRT: weights that are fixed, can be replaced (refit), or are left out of the engine"
    )
    dla_core: int = option(-1, "for TensorRT: DLA core, with fallback to the GPU for unsupported layers; -1: GPU only")
    external_kernels: bool = option(
        True, "for TensorRT up to 10: also try kernels of cuBLAS and cuDNN; without them less memory is used"
    )
    sparse_weights: bool = option(
        False, "for TensorRT: also try sparse kernels, for weights in the pattern 2:4 (prune) on Ampere and later"
    )
    cuda_graph: bool = option(True, "for TensorRT: launch inference as a CUDA graph where possible")
    edgetpu: bool = option(
        False, "for LiteRT in int8: write files that are ready for the Edge TPU by its published rules, and check them"
    )
    plugins: tuple[str, ...] = option(
        (), "for TensorRT: shared libraries of plugins, such as libmy.so, that engines are built with and may load"
    )
    builds: int = option(
        1, "for TensorRT and TensorRT for RTX: engines that are built, of which the quickest, timed in turns, is kept"
    )
    timing_cache: bool = option(True, "for TensorRT: keep a timing cache for later builds on this machine")

    def __post_init__(self) -> None:
        """Check the bounds, and that plugins have names of their own; ConfigError."""
        check_names(self.plugins)
        check_bounds(
            self,
            workspace_mib=(1, math.inf),
            optimization_level=(0, 5),
            native_batch_size=(1, math.inf),
            dla_core=(-1, 15),
            builds=(1, 100),
        )
        if self.builds > 1 and self.weights == "stripped":
            raise ConfigError(
                f"builds = {self.builds}: engines without weights cannot be timed; take 1, or weights = refittable"
            )

    def check_backends(self, names: Collection[str]) -> None:
        """That what makes an engine another one is taken by one of these backends; ConfigError."""
        for build_field in fields(self):
            takers = takers_of(build_field.name)
            if (
                build_field.name not in MAY_IDLE
                and getattr(self, build_field.name) != build_field.default
                and not {*takers} & {*names}
            ):
                raise ConfigError(
                    f"[build] {build_field.name}: has no effect on an engine for {' or '.join(sorted(names))}, it is "
                    f"for {with_and(takers)}; drop it, or add such a backend"
                )

    def is_native(self, name: str, precision: str) -> bool:
        """Whether that engine's INT8 comes from TensorRT's calibrator: it is built from the FP32 model then."""
        has_scales = precision_named(precision).has_scales
        return self.int8 == "native" and has_scales and NATIVE in backend(name).OBEYS

    def calibration(
        self, target: BuildTarget, ranges: Ranges | None, samples: Samples | None
    ) -> tuple[Ranges | Samples, ...]:
        """What else the build is given: what TensorRT's calibrator reads; nothing for other engines."""
        if not self.is_native(target.backend, target.precision):
            return ()
        source = ranges if self.native_scales == "ranges" else samples
        assert source is not None, "the flow has made it before it builds"
        return (source,)

    def versions(self, _model: object, target: BuildTarget, *_calibration: object) -> dict[str, str]:
        """Everything below that the engine depends on: runtime, and device where the backend builds for one."""
        runtime = backend(target.backend)
        versions = runtime.versions()
        if "timing_cache" in runtime.OBEYS:  # It chooses kernels by their times on this machine.
            versions |= {"power_mode": power_mode(Path("/")), "l4t": l4t(Path("/"))}
        if self.edgetpu and "edgetpu" in runtime.OBEYS:
            versions |= {COMPILER: compiler_version()}
        if FIELD in runtime.OBEYS:
            versions |= {f"plugin {file.name}": sha256_of_library(file) for file in plugin_files(self.plugins)}
        takes = self.external_kernels or "external_kernels" not in runtime.OBEYS
        return {name: version for name, version in versions.items() if takes or name not in SONAMES}

    def modules(self, _model: object, target: BuildTarget, *_calibration: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(target.backend),)

    def refuse(self, target: BuildTarget) -> None:
        """Raise Unavailable if the backend on this machine cannot do what the options ask."""
        options, runtime = self.options(target), backend(target.backend)
        if self.is_native(target.backend, target.precision):
            options = replace(options, native=GivenScales(b""))
        runtime.refuse(options)
        if self._num_builds(target) > 1 and (reason := runtime.why_not_run()):
            raise Unavailable(
                f"builds = {self.builds}: engines are timed where they are built, to keep the quickest ({reason}); "
                "build where they run, or take 1"
            )

    def _num_builds(self, target: BuildTarget) -> int:
        return self.builds if SEVERAL in backend(target.backend).OBEYS else 1

    def options(self, target: BuildTarget) -> BuildOptions:
        """What the backend is told; each is told what the documents say is for it."""
        asked = BuildOptions(target.precision, target.shapes, target.more_shapes)
        given_later = ("timing_cache", NATIVE, SEVERAL)
        obeyed = backend(target.backend).OBEYS.difference(given_later)
        values = {name: getattr(self, name) for name in obeyed}
        if FIELD in obeyed:
            values[FIELD] = plugin_files(self.plugins)
        return replace(asked, **values)

    def __call__(
        self, out: Path, model: ModelFile, target: BuildTarget, calibration: Ranges | Samples | None = None
    ) -> Engine:
        """Write the engine and its record. ``calibration``: for TensorRT's own calibrator; None for all else.

        Raises:
            ConfigError: a shape range is not min <= opt <= max, or native INT8 has no ranges or samples.
            Unavailable: the backend is not installed, or cannot do this here.
            EngineError: the backend refused the model.
            StageError: the builder crashed or was killed, with less to work with too.
        """
        for ranges in (target.shapes, *target.more_shapes):
            for name, shape in ranges.items():
                check_shape_range(name, shape)
        runtime = backend(target.backend)
        if reason := runtime.why_not_build():
            raise Unavailable(reason)
        if model.FORMAT != runtime.TAKES:
            raise ConfigError(
                f"{model.path}: is in the format {model.FORMAT}, {target.backend} builds from {runtime.TAKES}; give "
                f"such a file (of a SavedModel, `trtforge {'convert' if model.FORMAT == 'onnx' else 'export'}` writes "
                "it), or another backend"
            )
        self.refuse(target)
        options, notes = self._with_machine(model, target, calibration)
        engine = out / f"model{runtime.SUFFIX}"
        builds: list[BuildTimes] = []
        if (num := self._num_builds(target)) > 1:
            record, builds = _quickest_of(num, engine, model, target, options)
        else:
            record = _built(out, model, engine.name, target, options)
        record = replace(record, notes=(*record.notes, *notes), versions=self.versions(model, target))
        made_from = {"model": model.digest(), "calibration": calibration.digest() if calibration else ""}
        graph = {} if options.weights == BuildOptions.weights else {GRAPH: network_graph(model.path).record()}
        several = {SEVERAL: list(map(asdict, builds))} if builds else {}
        whole = asdict(record) | {"made_from": made_from} | graph | several
        (out / "record.json").write_text(json.dumps(whole, indent=1, sort_keys=True))
        (out / "notes.json").write_text(json.dumps(list(record.notes)))
        smallest, largest = target.batch_bounds()
        return Engine(engine, backend=target.backend, min_batch=smallest, max_batch=largest)

    def _with_machine(
        self, model: ModelFile, target: BuildTarget, calibration: Ranges | Samples | None
    ) -> tuple[BuildOptions, tuple[str, ...]]:
        """The options, with what lies on this machine; and sentences for the record."""
        options = self.options(target)
        versions = self.versions(model, target)
        if self.timing_cache and "timing_cache" in backend(target.backend).OBEYS:
            options = replace(options, timing_cache=timing_cache_path(user_cache() / "timing", versions))
        if not self.is_native(target.backend, target.precision):
            return options, ()
        version = versions[target.backend]
        assert isinstance(model, OnnxModel), "TensorRT reads no other"
        if isinstance(calibration, Ranges):
            scales, notes = scales_for_calibrator(model, calibration, version, of_every_tensor=self.dla_core >= 0)
            return replace(options, native=scales), notes
        if calibration is None:
            raise ConfigError('int8 = "native": there are neither ranges nor samples; give --ranges or --data')
        batches = batches_for_calibrator(model, calibration, version, self.native_batch_size)
        return replace(options, native=batches), ()


def takers_of(option: str) -> tuple[str, ...]:
    """The backends that an option of this stage has an effect on."""
    field_name = BEHIND.get(option, option)
    return tuple(name for name in BACKENDS if field_name in backend(name).OBEYS)


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


def _what(target: BuildTarget) -> str:
    return f"build {target.precision} for {target.backend}"


def _built(folder: Path, model: ModelFile, name: str, target: BuildTarget, options: BuildOptions) -> EngineRecord:
    """One engine in a folder, with less to work with where that is needed."""
    runtime = backend(target.backend)
    attempt = partial(_attempt, folder, model, folder / name, target)
    tries = attempts(options, runtime.refuse) if "workspace_mib" in runtime.OBEYS else iter((options,))
    return build_with_retries(_what(target), attempt, tries)


def _quickest_of(
    num: int, engine: Path, model: ModelFile, target: BuildTarget, options: BuildOptions
) -> tuple[EngineRecord, list[BuildTimes]]:
    """The record of the quickest of so many builds, which lies where it is to lie, and what is told of all.

    From the second on no timing cache is read, with which they would be the first again.
    """
    folders = [engine.parent / SEVERAL / str(number) for number in range(num)]
    records = []
    for folder in folders:
        folder.mkdir(parents=True)
        records.append(_built(folder, model, engine.name, target, options))
        options = replace(options, timing_cache=None)
    engines = [folder / engine.name for folder in folders]
    feed = example_feed(records[0], target.shapes)
    log, what = engine.with_name("builds.log"), f"{_what(target)}: time {num} builds"
    with waiting(what):
        sessions = child_process.call(log, what, times_in_turns, engines, target.backend, feed)
    p50s_ms, ratios = compared(sessions)
    best = ratios.index(min(ratios))
    builds = [
        BuildTimes(sha256_of(path), record.size_bytes, record.build_seconds, p50_ms, ratio, number == best)
        for number, (path, record, p50_ms, ratio) in enumerate(zip(engines, records, p50s_ms, ratios))
    ]
    for path in folders[best].iterdir():
        path.rename(engine.parent / path.name)
    shutil.rmtree(engine.parent / SEVERAL)
    record = records[best]
    return replace(record, notes=(*record.notes, sentence(builds))), builds


def _attempt(out: Path, model: ModelFile, engine: Path, target: BuildTarget, options: BuildOptions) -> EngineRecord:
    """One build in its own process, with a line on how far it is."""
    with Phases(_what(target)) as bar:
        return child_process.call_with_progress(
            out / "build.log", _what(target), bar.update, _build, model.path, engine, target.backend, options
        )


def _build(
    send_progress: child_process.SendProgress, model: Path, engine: Path, name: str, options: BuildOptions
) -> EngineRecord:
    return backend(name).build(model, engine, replace(options, progress=lambda *news: send_progress(news)))
