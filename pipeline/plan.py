"""TOML -> Plan: strict, offering the nearest name for a typo.

A plan's tables are the fields of ``Plan``; a stage's table holds the fields of that stage. Paths in a plan are
relative to the folder that the plan lies in.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from calibration.preprocess import Preprocess
from calibration.source import DataSource
from engines import BACKENDS
from engines.contract import Precision, ShapeRange
from pipeline.errors import ConfigError
from pipeline.option import option
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.export import Export
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.report import Report
from pipeline.stages.validate import Validate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


T = TypeVar("T")

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Model:
    """[model]: the trained network."""

    source: str = option("", "SavedModel folder, .keras, .h5 or .onnx file")
    signature: str = option("serving_default", "the SavedModel's signature")
    inputs: Mapping[str, ShapeRange] = field(default_factory=dict)
    """For each input with a dynamic dimension: the shapes it may take, as min, opt and max."""


@dataclass(frozen=True)
class Data:
    """[data]: representative samples to calibrate on, other samples to judge with, and how to judge."""

    calibration: DataSource
    evaluation: DataSource
    preprocess: Preprocess = field(default_factory=Preprocess)
    metric: str = option("", "top1, top5, mae, cosine, auc or module:function; empty: agreement with FP32 only")
    output: str = option("", "the output that the metric reads; needed where the model has several")


@dataclass(frozen=True)
class Variants:
    """[variants]: what is built: every precision for every backend."""

    precisions: tuple[Precision, ...] = option(PRECISIONS, "of fp32, fp16, int8")
    backends: tuple[str, ...] = option(("onnxruntime",), "of onnxruntime, reference, tensorrt, tensorrt_rtx")


@dataclass(frozen=True)
class Plan:
    """Everything that `trtforge run` needs to know."""

    model: Model
    data: Data
    variants: Variants = Variants()
    export: Export = Export()
    calibrate: Calibrate = Calibrate()
    cast: Cast = Cast()
    quantize: Quantize = Quantize()
    build: Build = Build()
    infer: Infer = Infer()
    validate: Validate = Validate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
    folder: Path = Path()
    """Where the plan lies; not a table."""
    path: Path = Path()
    """The plan's file; not a table."""

    def resolved(self, path: str) -> Path:
        """A path of the plan, taken from the plan's folder."""
        return self.folder / path

    def digest(self) -> str:
        """SHA-256 (hex) of the plan's file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


STAGES = ("export", "calibrate", "cast", "quantize", "build", "infer", "validate", "benchmark", "report")
"""The verbs, in the order in which a run needs them."""


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file.

    Raises:
        ConfigError: the file is missing, is not TOML, or has an unknown key or a value of a wrong type.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a plan") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not a TOML file: {error}") from error
    for key in ("folder", "path"):
        if key in table:
            raise ConfigError(f"{path}: unknown key '{key}'; the tables are {', '.join(_table_names())}")
    for needed in ("model", "data"):
        if needed not in table:
            raise ConfigError(f"{path}: the table [{needed}] is missing; `examples/` has a whole plan")
    plan = record_from_table(table | {"folder": path.parent, "path": path}, Plan, str(path))
    _check(plan, path)
    return plan


def _table_names() -> list[str]:
    return [f.name for f in fields(Plan) if f.name not in ("folder", "path")]


def _check(plan: Plan, path: Path) -> None:
    if not plan.model.source:
        raise ConfigError(f"{path}: [model] has no source; name a SavedModel folder, .keras, .h5 or .onnx file")
    for given, known, what in (
        (plan.variants.precisions, PRECISIONS, "precision"),
        (plan.variants.backends, tuple(name for name in BACKENDS if name != "tensorflow"), "backend"),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(f"{path}: [variants] unknown {what} '{name}'{nearest(name, known)}")
        if not given:
            raise ConfigError(f"{path}: [variants] {what}s is empty; name at least one of {', '.join(known)}")


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{meant} known: {', '.join(known)}"


def record_from_table(table: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A dataclass from plain data, strictly: no unknown key, no value of another type.

    Raises:
        ConfigError: names the key, as in ``plan.toml: [quantize] unknown key 'metod'; did you mean 'method'?``.
    """
    try:
        return _CONVERTER.structure(table, kind)
    except Exception as error:
        place, said = _first_fault(error)
        inside = f" [{'.'.join(place)}]" if place else ""
        raise ConfigError(f"{where}:{inside} {said}") from error


def _first_fault(error: BaseException) -> tuple[list[str], str]:
    """The path to the innermost fault, and what it is, out of cattrs's tree of errors."""
    if isinstance(error, (ClassValidationError, IterableValidationError)):
        inner = error.exceptions[0]
        for note in getattr(inner, "__notes__", []):
            name = getattr(note, "name", None)
            place, said = _first_fault(inner)
            if name is not None:
                return [str(name), *place], said
        return _first_fault(inner)
    if isinstance(error, ForbiddenExtraKeysError):
        extra = sorted(error.extra_fields)[0]
        known = _table_names() if error.cl is Plan else [f.name for f in fields(error.cl)]
        return [], f"unknown key '{extra}'{nearest(extra, known)}"
    if isinstance(error, KeyError):
        return [], f"the key '{error.args[0]}' is missing; write {error.args[0]} = …"
    return [], str(error)


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _literal)
    plain_source = make_dict_structure_fn(DataSource, converter, _cattrs_forbid_extra_keys=True)
    converter.register_structure_hook(
        DataSource, lambda value, kind: DataSource(path=value) if isinstance(value, str) else plain_source(value, kind)
    )
    return converter


def _literal(value: object, kind: object) -> object:
    allowed = get_args(kind)
    if value not in allowed:
        raise ValueError(f"is '{value}'{nearest(str(value), [str(a) for a in allowed])}")
    return value


def _strict(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"is {value!r} ({type(value).__name__}), but takes {_words(kind)}")
    return value


def _words(kind: Any) -> str:
    words: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    return words.get(kind, "a text in quotes")


_CONVERTER = _converter()

__all__ = ["STAGES", "Data", "Model", "Plan", "Variants", "nearest", "read_plan", "record_from_table", "tomllib"]
