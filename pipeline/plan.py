"""TOML -> Plan: strict, offering the nearest name for a typo.

A plan's tables are the fields of ``Plan``; a stage's table holds the fields of that stage. Paths in a plan are
relative to the folder that the plan lies in.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli_w

from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from engines import backend, builders
from engines.contract import ShapeRange
from engines.model_format import ModelFormat
from engines.precision import FP16, FP32, INT8, PRECISIONS
from pipeline.artifact import NETWORKS, PRUNED, TRAINED, TUNED
from pipeline.errors import ConfigError
from pipeline.option import option
from pipeline.signing.options import Sign
from pipeline.spelling import nearest
from pipeline.stage import Stage
from pipeline.stages import advise, gate, report
from pipeline.stages.advise import Advise
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.convert import Convert
from pipeline.stages.export import Export
from pipeline.stages.gate import Gate
from pipeline.stages.infer import Infer
from pipeline.stages.lint import Lint
from pipeline.stages.pack import Pack
from pipeline.stages.prune import Prune
from pipeline.stages.ptq import Ptq
from pipeline.stages.quantize import Quantize
from pipeline.stages.report import Report
from pipeline.stages.support import Support
from pipeline.stages.tolerate import Tolerate
from pipeline.stages.tune import Tune
from pipeline.stages.validate import Validate
from pipeline.strict import NO_KEY, names_in_file, record_from_table
from pipeline.tasks.detector import Detector

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_DEFAULT_FOLDERS = {
    Report: report.DEFAULT_FOLDER,
    Gate: gate.DEFAULT_FOLDER,
    Advise: advise.DEFAULT_FOLDER,
}


@dataclass(frozen=True)
class Model:
    """[model]: the trained network."""

    source: str = option(
        "",
        "SavedModel folder, .keras, .h5, .onnx, .tflite or .pt2 file, or module:function of a PyTorch network",
    )
    signature: str = option("serving_default", "the SavedModel's signature")
    float_source: str = option(
        "", "of a source that came quantized: the FP32 network that it was made of, which INT8 is compared with"
    )
    inputs: Mapping[str, ShapeRange] = field(default_factory=dict)
    """For each input with a dynamic dimension: the shapes it may take, as min, opt and max."""
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    """Further optimization profiles, each with a range for each of those inputs."""


@dataclass(frozen=True)
class Data:
    """[data]: representative samples to calibrate on, other samples to judge with, and how to judge."""

    evaluation: DataSource
    calibration: DataSource | None = None
    """None: for a network that came quantized, of which nothing is calibrated."""
    tuning: DataSource | None = None
    """What [tune] and [prune] train on; none: the calibration samples."""
    preprocess: Preprocess = field(default_factory=Preprocess)
    metric: str = option("", "such as top1, f1, rmse, miou, map or module:function; empty: agreement with FP32 only")
    output: str = option("", "the output that the metric reads; needed where the model has several")
    detector: Detector = field(default_factory=Detector)
    """How the outputs of a detector are read."""


@dataclass(frozen=True)
class Variants:
    """[variants]: what is built: every precision for every backend, of every network."""

    precisions: tuple[str, ...] = option((FP32.name, FP16.name, INT8.name), "of fp32, fp16, int16x8, dynamic, int8")
    backends: tuple[str, ...] = option(
        ("onnxruntime",),
        "of litert, onnxruntime, onnxruntime_cuda, onnxruntime_tensorrt, reference, tensorrt, tensorrt_rtx",
    )
    networks: tuple[str, ...] = option(
        (TRAINED,), "of trained, pruned, tuned (INT8 alone); without it, trained and those that have a table"
    )


@dataclass(frozen=True)
class Packed:
    """[packed]: what another machine made of the plan; `trtforge pack` writes this table."""

    manifest: str = option("", "manifest.json of an unpacked bundle: its models, samples and outputs are used")


@dataclass(frozen=True)
class Plan:
    """Everything that `trtforge run` needs to know."""

    model: Model
    data: Data
    variants: Variants = Variants()
    export: Export = Export()
    support: Support = Support()
    lint: Lint = Lint()
    convert: Convert = Convert()
    prune: Prune = Prune()
    calibrate: Calibrate = Calibrate()
    cast: Cast = Cast()
    tune: Tune = Tune()
    quantize: Quantize = Quantize()
    ptq: Ptq = Ptq()
    tolerate: Tolerate = Tolerate()
    build: Build = Build()
    infer: Infer = Infer()
    validate: Validate = Validate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
    gate: Gate = Gate()
    advise: Advise = Advise()
    pack: Pack = Pack()
    packed: Packed = Packed()
    sign: Sign = Sign()
    folder: Path = field(default=Path(), metadata=NO_KEY)
    """Where the plan lies; not a table."""
    path: Path = field(default=Path(), metadata=NO_KEY)
    """The plan's file; not a table."""

    settings: tuple[str, ...] = field(default=(), metadata=NO_KEY)
    """Keys that the command line gave other values; not a table."""
    text: str = field(default="", metadata=NO_KEY, repr=False)
    """What stands in the file; not a table."""

    def resolved(self, path: str) -> Path:
        """A path of the plan, taken from the plan's folder."""
        return self.folder / path

    def output_folder(self, stage: Report | Gate | Advise) -> Path:
        """Where that stage writes: as the plan says, else a folder that no other plan beside this one has."""
        default = _DEFAULT_FOLDERS[type(stage)]
        name = self.path.stem
        return self.resolved(stage.folder or (default if name in ("", "plan") else f"{default}-{name}"))

    def output_folders(self) -> list[Path]:
        """Where its runs write, beside the store."""
        return [self.output_folder(stage) for stage in (self.report, self.gate, self.advise)]

    def trains(self) -> bool:
        """Whether a network is trained here; the device that is given a bundle has it ready."""
        trained_meanwhile = PRUNED in self.variants.networks and self.prune.epochs > 0
        return not self.packed.manifest and (TUNED in self.variants.networks or trained_meanwhile)

    def times_engines(self, until: str) -> bool:
        """Whether a run up to that stage times engines."""
        return until == "benchmark" or (until == "gate" and self.gate.pays)

    def stage(self, name: str) -> Stage:
        """The stage of that name, with the plan's options."""
        stage = getattr(self, name)
        assert isinstance(stage, Stage), f"{name} is no stage"
        return stage

    def stage_writing(self, precision: str, model_format: ModelFormat) -> Stage:
        """The stage that writes a precision into a model of that format.

        Raises:
            ConfigError: none does.
        """
        stages = [self.stage(name) for name in STAGES]
        for stage in stages:
            if precision in stage.WRITES and model_format == stage.FORMAT:
                return stage
        others = [
            name for name in builders() if backend(name).TAKES in {s.FORMAT for s in stages if precision in s.WRITES}
        ]
        where = f", or take {' or '.join(others)}, which has it" if others else ""
        raise ConfigError(f"the backend takes no {precision} model; take it out of [variants] precisions{where}")

    def digest(self) -> str:
        """SHA-256 (hex) of the plan's file, and of the keys that the command line gave other values."""
        return hashlib.sha256("\n".join((*self.settings, self.text)).encode()).hexdigest()

    def changed(self, settings: Sequence[str]) -> Plan:
        """The plan with these keys changed as well, as ``read_plan`` takes them."""
        return plan_from_text(self.text, self.path, (*self.settings, *settings))


STAGES = tuple(stage_field.name for stage_field in fields(Plan) if isinstance(stage_field.default, Stage))
"""The stages by name, in the order in which a run needs them."""


MOST_DOTS = 64
"""In a key: TOML's reader takes minutes for one of ten thousands."""


def table_from_toml(text: str) -> dict[str, Any]:
    """The table that a text in TOML means.

    Raises:
        ValueError: it is not TOML, or is nested too deeply to be anybody's.
    """
    if any(part.count(".") > MOST_DOTS for line in text.splitlines() for part in re.split(r"[=,\[\]{}]", line)):
        raise ValueError(f"a key has more than {MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def table_from_file(path: Path, what: str) -> dict[str, Any]:
    """The table that a file in TOML means; ``what`` the file should be, for the sentence about one that is not.

    Raises:
        ConfigError: it cannot be read, or is not TOML.
    """
    return _table(text_of_file(path, what), path)


def text_of_file(path: Path, what: str) -> str:
    """The text of a file; as ``table_from_file``."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of {what}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8; give the path of {what}, or save it in UTF-8") from error


def _table(text: str, path: Path) -> dict[str, Any]:
    try:
        return table_from_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: is not TOML: {error}; correct it there") from error


def read_plan(path: Path, settings: Sequence[str] = ()) -> Plan:
    """The plan in a TOML file.

    Args:
        path: the file.
        settings: keys with other values than there, each a line of TOML such as ``build.workspace_mib = 2048``.

    Raises:
        ConfigError: the file is missing, is not TOML, or has an unknown key or a value of a wrong type.
    """
    return plan_from_text(text_of_file(path, "a plan"), path, settings)


def plan_from_text(text: str, path: Path, settings: Sequence[str] = ()) -> Plan:
    """The plan that a text means, which stands in a file of that path, or would; as ``read_plan``."""
    table = _table(text, path)
    for key in ("folder", "path", "settings", "text"):
        if key in table:
            raise ConfigError(f"{path}: unknown key '{key}'; the tables are {', '.join(names_in_file(Plan))}")
    for needed in ("model", "data"):
        if needed not in table:
            raise ConfigError(f"{path}: the table [{needed}] is missing; `examples/` has a whole plan")
    for setting in settings:
        table = merged(table, setting_from_text(setting))
    where = str(path) if not settings else f"{path} with {', '.join(f'--set {setting}' for setting in settings)}"
    if isinstance(variants := table.get("variants", {}), dict) and "networks" not in variants:
        networks = [TRAINED, *(name for name, key in ((PRUNED, "prune"), (TUNED, "tune")) if key in table)]
        table = merged(table, {"variants": {**variants, "networks": networks}})
    own_keys = {"folder": path.parent, "path": path, "settings": tuple(settings), "text": text}
    plan = record_from_table(table | own_keys, Plan, where)
    _check(plan, path)
    return plan


def setting_from_text(text: str) -> dict[str, Any]:
    """The tables that ``TABLE.KEY=VALUE`` means; a value that is not TOML is taken as text.

    Raises:
        ConfigError: it has no such form.
    """
    key, equals, value = text.partition("=")
    for line in (text, f"{key}={tomli_w.dumps({'x': value.strip()}).partition('=')[2]}"):
        with suppress(ValueError):
            table = table_from_toml(line)
            if equals and all(isinstance(inner, dict) for inner in table.values()):
                return table
    raise ConfigError(f"--set {text}: is not TABLE.KEY=VALUE; write for example --set build.workspace_mib=2048")


def merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The table with those keys changed, also of tables within it."""
    both = {
        key: merged(table[key], value) if isinstance(table.get(key), dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }
    return {**table, **both}


def _check(plan: Plan, path: Path) -> None:
    if not plan.model.source:
        raise ConfigError(
            f"{path}: [model] has no source; name a SavedModel folder, a .keras, .h5, .onnx, .tflite or .pt2 file, or "
            "module:function"
        )
    for key, names, known in (
        ("[variants] precisions", plan.variants.precisions, tuple(PRECISIONS)),
        ("[variants] backends", plan.variants.backends, builders()),
        ("[variants] networks", plan.variants.networks, NETWORKS),
        ("[pack] backends", plan.pack.backends, builders()),
    ):
        for name in names:
            if name not in known:
                raise ConfigError(f"{path}: {key}: is '{name}'{nearest(name, known)}")
        if not names:
            raise ConfigError(f"{path}: {key} is empty; name at least one of {', '.join(known)}")


__all__ = [
    "STAGES", "Data", "Model", "Plan", "Variants", "read_plan", "table_from_file", "table_from_toml", "tomllib",
]  # fmt: skip
