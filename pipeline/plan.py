"""TOML -> Plan: strict, offering the nearest name for a typo.

A plan's tables are the fields of ``Plan``; a stage's table holds the fields of that stage. Paths in a plan are
relative to the folder that the plan lies in.
"""

from __future__ import annotations

import difflib
import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from engines import BACKENDS
from engines.contract import PRECISIONS, Precision, ShapeRange
from pipeline.errors import EXIT_STATUS, ConfigError
from pipeline.option import option
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.export import Export
from pipeline.stages.gate import Gate
from pipeline.stages.infer import Infer
from pipeline.stages.lint import Lint
from pipeline.stages.pack import Pack
from pipeline.stages.quantize import Quantize
from pipeline.stages.report import Report
from pipeline.stages.tolerate import Tolerate
from pipeline.stages.validate import Validate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


T = TypeVar("T")

BUILDERS = tuple(name for name in BACKENDS if name != "tensorflow")
"""Backends that engines can be built for."""


@dataclass(frozen=True)
class Model:
    """[model]: the trained network."""

    source: str = option("", "SavedModel folder, .keras, .h5 or .onnx file")
    signature: str = option("serving_default", "the SavedModel's signature")
    inputs: Mapping[str, ShapeRange] = field(default_factory=dict)
    """For each input with a dynamic dimension: the shapes it may take, as min, opt and max."""
    profiles: tuple[Mapping[str, ShapeRange], ...] = ()
    """Further optimization profiles, each with a range for each of those inputs."""


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
    lint: Lint = Lint()
    calibrate: Calibrate = Calibrate()
    cast: Cast = Cast()
    quantize: Quantize = Quantize()
    tolerate: Tolerate = Tolerate()
    build: Build = Build()
    infer: Infer = Infer()
    validate: Validate = Validate()
    benchmark: Benchmark = Benchmark()
    report: Report = Report()
    gate: Gate = Gate()
    pack: Pack = Pack()
    packed: Packed = Packed()
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


STAGES = (
    "export", "lint", "calibrate", "cast", "quantize", "tolerate", "build", "infer", "validate", "benchmark", "report",
    "gate", "pack",
)  # fmt: skip
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
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text in UTF-8; give the path of a plan, or save it in UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML: {error}; correct it there") from error
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
        (plan.variants.backends, BUILDERS, "backend"),
        (plan.pack.backends, BUILDERS, "backend"),
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

    A table within a table starts from the default of its field: ``[validate.int8] max_metric_drop = 0.02`` leaves the
    other tolerances for INT8 as they are.

    Raises:
        ConfigError: names the key, as in ``plan.toml: [quantize] unknown key 'metod'; did you mean 'method'?``.
    """
    try:
        return _CONVERTER.structure(table, kind)
    except Exception as error:
        place, said = _first_fault(error)
        inside = f" [{'.'.join(place)}]" if place else ""
        for word in (*place, where.lstrip("-")):  # A record that checks itself may begin with its own name.
            said = said.removeprefix(f"{word}: ")
        raise ConfigError(f"{where}:{inside} {said}") from error


class _Misfit(ValueError):
    """A value that does not fit, and the keys that lead to it."""

    def __init__(self, place: list[str], said: str) -> None:
        super().__init__(said)
        self.place = place


def _first_fault(error: Exception) -> tuple[list[str], str]:
    """The path to the innermost fault, and what it is, out of cattrs's tree of errors.

    What is neither a value's fault nor one of our sentences is a bug of ours, and raised as it is.
    """
    if isinstance(error, ClassValidationError):
        inner = next((e for e in error.exceptions if isinstance(e, ForbiddenExtraKeysError)), error.exceptions[0])
        place, said = _first_fault(inner)
        notes = [note for note in getattr(inner, "__notes__", []) if isinstance(note, AttributeValidationNote)]
        return ([notes[0].name, *place] if notes and not isinstance(inner, KeyError) else place), said
    if isinstance(error, ForbiddenExtraKeysError):
        extra = sorted(error.extra_fields)[0]
        known = _table_names() if error.cl is Plan else [f.name for f in fields(error.cl)]
        return [], f"unknown key '{extra}'{nearest(extra, known)}"
    if isinstance(error, _Misfit):
        return error.place, str(error)
    if isinstance(error, KeyError):
        return [], f"the key '{error.args[0]}' is missing; write {error.args[0]} = …"
    if isinstance(error, (ValueError, *EXIT_STATUS)):
        return [], str(error)
    raise error


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(_made_of(Literal), _literal)
    converter.register_structure_hook_func(_made_of(tuple), partial(_list, converter))
    converter.register_structure_hook_func(_made_of(Mapping), partial(_mapping, converter))
    converter.register_structure_hook_factory(is_dataclass, partial(_record, converter))
    return converter


def _made_of(origin: object) -> Callable[[Any], bool]:
    """Whether a type is, say, some ``tuple[...]``."""
    return lambda kind: get_origin(kind) is origin


def _record(converter: cattrs.Converter, kind: type[Any]) -> Callable[[Any, Any], Any]:
    """The hook for one dataclass: a table, or for a data set its path alone."""
    plain = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
    begun = {f.name: _plain_fields(f.default) for f in fields(kind) if is_dataclass(f.default)}

    def structure(value: Any, _: Any) -> Any:
        if kind is DataSource and isinstance(value, str):
            return DataSource(path=value)
        if not isinstance(value, Mapping):
            raise ValueError(_misfit(value, "a table of " + ", ".join(f.name for f in fields(kind))))
        whole = {
            key: {**begun.get(key, {}), **item} if isinstance(item, Mapping) else item for key, item in value.items()
        }
        return plain(whole, kind)

    return structure


def _plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are no dataclasses themselves."""
    return {name: value for name, value in vars(record).items() if not is_dataclass(value)}


def _list(converter: cattrs.Converter, value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(_misfit(value, "a list in [brackets]"))
    return tuple(converter.structure(item, get_args(kind)[0]) for item in value)


def _mapping(converter: cattrs.Converter, value: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(_misfit(value, "a table"))
    found = {}
    for key, item in value.items():
        try:
            found[key] = converter.structure(item, get_args(kind)[1])
        except Exception as error:
            place, said = _first_fault(error)
            raise _Misfit([key, *place], said) from error
    return found


def _literal(value: object, kind: object) -> object:
    allowed = get_args(kind)
    if value not in allowed:
        raise ValueError(f"is {value!r}{nearest(str(value), [str(a) for a in allowed])}")
    return value


def _strict(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        words: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(_misfit(value, words.get(kind, "a text in quotes")))
    return value


def _misfit(value: object, wanted: str) -> str:
    """What a value of a plan is, in TOML's words, against what was expected."""
    kinds: dict[type, str] = {bool: "a truth value", int: "a whole number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "a table"}
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return f"is {shown}, {kinds.get(type(value), 'a date or time')}, but takes {wanted}"


_CONVERTER = _converter()

__all__ = ["STAGES", "Data", "Model", "Plan", "Variants", "nearest", "read_plan", "record_from_table", "tomllib"]
