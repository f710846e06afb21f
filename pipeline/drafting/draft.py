"""Write a first plan: a network, its samples, and what both tell; what they do not tell stands there as a question."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from calibration.data.array_files import headers
from calibration.data.batches import open_samples
from calibration.data.input_specs import input_specs_from_onnx
from calibration.data.labels.boxes import is_box_table
from calibration.data.labels.pairs import is_pair_table
from calibration.data.preprocess import Preprocess
from calibration.data.source import DYNAMIC, FUNCTION, DataSource, InputSpec
from calibration.errors import DataError
from engines import backend, builders
from engines.contract import TensorSpec
from engines.onnx_model import facts
from engines.precision import FP16, FP32, INT8
from pipeline.accuracy.metrics import metric as named_metric
from pipeline.artifact import OnnxModel, Source, TfliteModel
from pipeline.drafting.class_labels import is_one_hot, why_no_classes
from pipeline.drafting.data_sets import data_sets, path_in_plan
from pipeline.drafting.facts import DataSet, DataSets, Preprocessing
from pipeline.drafting.pixels import LabelledData, shape_of_pictures, with_fit, with_scale
from pipeline.errors import ConfigError
from pipeline.page.toml_text import key_text, value_text
from pipeline.spelling import shown
from pipeline.strict import names_in_file

TYPICAL_BATCHES = (1, 1, 8)
"""Of a dynamic batch: the least, the usual and the largest that engines are built for."""
ENOUGH_TO_CALIBRATE = 512
WIDTH = 110
"""Of a comment's lines."""
IN_UNITS = ("mae", "rmse")
"""Metrics that are in the unit of the labels."""
SHARE_OF_SPREAD = 0.01
NOT_FOR_DEPLOYMENT = ("reference",)
"""Backends that answer exactly, and slowly."""


@dataclass(frozen=True)
class UsersChoice:
    """What the user says beside the network and the data; empty or None: nothing."""

    labels: str = ""
    metric: str = ""
    preprocess: Preprocess | None = None


@dataclass(frozen=True)
class Draft:
    """A first plan."""

    text: str
    """TOML, with comments."""
    questions: Mapping[str, str]
    """Where -> what has to be answered there before it can be run; a "?" stands there."""


def draft_plan(source: Source, model: OnnxModel, data: str, choice: UsersChoice, folder: Path) -> Draft:
    """The plan for a network that was exported already.

    Args:
        source: the network.
        model: the same as ONNX.
        data: a folder, a file, or module:function.
        choice: what the user says beside it.
        folder: where the plan will lie.

    Raises:
        ConfigError: the data is nothing that could be samples; there is no such metric; a name is not UTF-8.
        DataError: a file of it is damaged, or its labels cannot be read.
        ModelError: the exported file is damaged.
    """
    if choice.metric and not FUNCTION.fullmatch(choice.metric):
        named_metric(choice.metric)
    specs, outputs = input_specs_from_onnx(model.path), facts(model.path).outputs
    sets = data_sets(data, choice.labels, specs, folder)
    known = _preprocessing(sets, specs, model, (outputs, folder), choice)
    is_open = bool(sets.questions) or not set(known.questions) <= {"scale"}
    labels = _labels(_source_of(sets.evaluation, folder), specs, known.options, is_open=is_open)
    metric, output, asked = _metric(choice.metric, labels, outputs)
    if labels is not None and choice.preprocess is None and sets.are_pictures:
        known = with_fit(known, labels)
    needed = {f"[data.preprocess] {key}": text for key, text in known.questions.items()}
    needed |= {f"[data.calibration] and [data.evaluation] {key}": text for key, text in sets.questions.items()}
    lines = [
        "# A first plan, by `trtforge init`; docs/plan.md has every key.",
        *_comments([f'{where}, where "?" stands: {text}' for where, text in needed.items()], "? "),
        *_comments([*sets.asks, *asked], "? "),
        "",
        *_model(source, specs, folder),
        *_data(sets, metric, output),
        *_preprocess(known),
        *_variants(source),
        "[benchmark]",
        "num_threads = 1  # of a CPU runtime; 0: its own default",
        "",
        "[advise]  # which technique? `trtforge advise` tries them against these bounds",
        *_bounds(metric, labels),
        '# bounds = ["metric_drop <= 0.01", "p50_ms <= 0.5 x baseline", "size_compressed_mib <= 2"]',
    ]
    text = "\n".join(lines) + "\n"
    if foreign := [line for line in lines if not _is_utf8(line)]:
        raise ConfigError(f"{foreign[0]!a}: is not UTF-8, which a plan is written in; rename the file or folder")
    return Draft(text, needed)


def _is_utf8(text: str) -> bool:
    """Whether no byte of a file's name stands in it that could not be decoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bounds(metric: str, labels: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None) -> list[str]:
    """The lines of [advise] on accuracy, and of what else holds it; of errors in the labels' unit, by their spread."""
    spread = _spread(labels) if metric in IN_UNITS and labels is not None else 0.0
    if not spread:
        return [f"bounds = {value_text(['metric_drop <= 0.01'] if metric else ['agreement >= 0.98'])}"]
    most = f"{spread * SHARE_OF_SPREAD:.2g}"
    return [
        *_comments([f"{most}: a hundredth of the labels' standard deviation; {metric} is in their unit"]),
        f"bounds = {value_text([f'metric_drop <= {most}'])}",
    ]


def _spread(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> float:
    """The standard deviation of numbers; 0 of what are none."""
    return float(np.std(values.astype(float))) if values.dtype.kind in "iuf" else 0.0


def _preprocessing(
    sets: DataSets,
    specs: tuple[InputSpec, ...],
    model: OnnxModel,
    beside: tuple[Sequence[TensorSpec], Path],
    choice: UsersChoice,
) -> Preprocessing:
    """What is done to samples: as the user says, else as network and data tell."""
    outputs, folder = beside
    if choice.preprocess is not None:
        return Preprocessing(choice.preprocess, ("as given",))
    output = _class_output(outputs)
    num_classes = next((spec.shape[1] for spec in outputs if spec.name == output), DYNAMIC)
    labelled = LabelledData(_source_of(sets.evaluation, folder), specs, output, num_classes)
    if sets.are_pictures:
        return with_scale(shape_of_pictures(specs[0]), model, labelled)
    return _of_arrays(sets.evaluation, specs, model, labelled)


def _of_arrays(data: DataSet, specs: tuple[InputSpec, ...], model: OnnxModel, labelled: LabelledData) -> Preprocessing:
    """Of stored arrays: numbers as the network takes them are taken as they are; bytes are pixels."""
    path = Path(labelled.source.path)
    if FUNCTION.fullmatch(data.path) or len(specs) > 1 or not path.is_file():
        return Preprocessing()
    spec, arrays = specs[0], headers(path, data.path)
    header = arrays.get(data.inputs.get(spec.name, spec.name)) or next(iter(arrays.values()))
    if header.dtype.name == spec.dtype:
        return Preprocessing(notes=(f"arrays of {spec.dtype} are taken as they are stored",))
    options = Preprocess(dtype=spec.dtype)  # type: ignore[arg-type]  # A dtype that it does not know is refused there.
    if header.dtype != np.uint8 or len(spec.shape) != 4:
        return Preprocessing(options, (f"stored as {header.dtype}, the network takes {spec.dtype}",))
    is_turned = header.shape[-1] in (1, 3) and spec.shape[1] in (1, 3) and spec.shape[-1] not in (1, 3)
    options = replace(options, layout="nchw" if is_turned else "keep")
    return with_scale(Preprocessing(options, ("stored as bytes, as pictures are",)), model, labelled)


def _class_output(outputs: Sequence[TensorSpec]) -> str:
    """The only output with a number for each of several classes; empty if there is none, or more."""
    names = [spec.name for spec in outputs if len(spec.shape) == 2 and spec.shape[1] not in (DYNAMIC, 1)]
    return names[0] if len(names) == 1 else ""


def _source_of(data: DataSet, folder: Path) -> DataSource:
    path = data.path if FUNCTION.fullmatch(data.path) else str(folder / data.path)
    beside = folder / data.labels if data.labels else None  # A key, or a file or folder.
    labels = str(beside) if beside is not None and beside.exists() else data.labels
    return DataSource(path, data.inputs, labels, 0, data.fold)


def _labels(
    data: DataSource, specs: tuple[InputSpec, ...], options: Preprocess, *, is_open: bool
) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The labels, where they can be read already; a function's come with its samples.

    Raises:
        DataError: they cannot be read, though nothing that this takes is open.
    """
    if not (data.labels or FUNCTION.fullmatch(data.path)):
        return None
    try:
        samples = open_samples(data, specs, options, Path())
    except DataError:
        if not is_open:
            raise
        return None  # Its question stands in the plan.
    return None if samples.reader.labels() is None else samples.labels()


def _metric_of_labels(labels: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> str:
    """The metric that labels of a kind of their own are for; empty for numbers and values."""
    if is_box_table(labels):
        return "map"
    if is_pair_table(labels):
        return "eer"
    return "miou" if labels.ndim == 3 and labels.dtype in (np.uint8, np.uint16) else ""


def _metric(
    chosen: str, labels: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None, outputs: Sequence[TensorSpec]
) -> tuple[str, str, tuple[str, ...]]:
    """The metric that fits the labels, the output that it reads, and a question where none is sure to."""
    if chosen:
        return chosen, _class_output(outputs) if len(outputs) > 1 else "", ()
    if labels is None:
        return "", "", ("no labels were named, so that answers are compared with FP32's alone: is there a metric?",)
    if metric := _metric_of_labels(labels):
        return metric, "", ()
    several = [spec for spec in outputs if len(spec.shape) == 2 and spec.shape[1] != 1]
    reason = why_no_classes(labels, several[0].shape[1]) if len(several) == 1 else ""
    if len(several) == 1 and not reason:
        return "top1", several[0].name if len(outputs) > 1 else "", ()
    if is_one_hot(labels):
        return "", "", ("labels are one-hot: store each class's index instead, for top1; else which metric is it?",)
    if labels.dtype.kind == "f" and len(outputs) == 1 and _squeezed(outputs[0].shape) == _squeezed(labels.shape):
        return "mae", "", ()
    shapes = ", ".join(f"{spec.name} {spec.shape}" for spec in outputs)
    because = f" For top1 {reason}." if reason else ""
    return "", "", (f"which metric fits labels {labels.dtype} {labels.shape} and outputs {shapes}?{because}",)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """Of one sample, without axes of length 1, as metrics of values take it."""
    return tuple(size for size in shape[1:] if size != 1)


def _model(source: Source, specs: Sequence[InputSpec], folder: Path) -> Iterator[str]:
    is_function = FUNCTION.fullmatch(str(source.path))
    named = str(source.path) if is_function else path_in_plan(source.path, folder)
    yield "[model]"
    yield f"source = {value_text(named)}"
    if signature := source.signature_name():
        yield f"signature = {value_text(signature)}"
    for spec in specs:
        if spec.shape[0] == DYNAMIC and DYNAMIC not in spec.shape[1:]:
            yield f"[model.inputs.{key_text(spec.name)}]  # the shapes that its batch may take"
            yield from (
                f"{word} = {[size, *spec.shape[1:]]}" for word, size in zip(("min", "opt", "max"), TYPICAL_BATCHES)
            )
        elif DYNAMIC in spec.shape:
            yield f"# backends that build for given shapes need [model.inputs.{key_text(spec.name)}]: {spec.shape}"
    yield ""


def _data(sets: DataSets, metric: str, output: str) -> Iterator[str]:
    yield "[data]"
    yield (
        f"metric = {value_text(metric)}"
        if metric
        else '# metric = "top1"  # or f1, auc, rmse, miou, map, module:function …: docs/metrics.md'
    )
    if output:
        yield f"output = {value_text(output)}"
    yield from _comments(sets.notes)
    for word, data in (("calibration", sets.calibration), ("evaluation", sets.evaluation)):
        yield f"[data.{word}]"
        table: dict[str, object] = {field.name: getattr(data, field.name) for field in fields(data)}
        table |= dict.fromkeys(sets.questions, "?")
        yield from (f"{key} = {value_text(value)}" for key, value in table.items() if value)
        if word == "calibration":
            yield f"limit = {ENOUGH_TO_CALIBRATE}  # evenly spread; more seldom change a range"
    yield ""


def _preprocess(known: Preprocessing) -> Iterator[str]:
    """Only what differs from the defaults; and how it is known."""
    nothing = Preprocess()
    table = {name: getattr(known.options, name) for name in names_in_file(Preprocess)}
    changed: Mapping[str, object] = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in table.items()
        if value != getattr(nothing, name)
    }
    changed = {**changed, **dict.fromkeys(known.questions, "?")}
    yield from _comments(known.notes)
    yield "[data.preprocess]"
    yield from (f"{key} = {value_text(value)}" for key, value in changed.items())
    yield ""


def _comments(texts: Iterable[str], mark: str = "") -> Iterator[str]:
    """The lines of comments, of which each begins with the mark."""
    later = "#" + " " * (len(mark) + 1)
    for text in texts:
        yield from textwrap.wrap(shown(text), WIDTH, initial_indent=f"# {mark}", subsequent_indent=later)


def _variants(source: Source) -> Iterator[str]:
    here: list[str] = []
    not_here: list[str] = []
    for name in builders():
        if name in NOT_FOR_DEPLOYMENT:
            continue
        runtime = backend(name)
        reason = runtime.why_not_build() or runtime.why_not_run()
        if not reason and runtime.TAKES == TfliteModel.FORMAT and runtime.TAKES not in source.BECOMES:
            reason = "no .tflite file can be made of this source"
        (not_here if reason else here).append(f"{name}: {reason.removeprefix(f'{name}: ')}" if reason else name)
    yield "[variants]"
    yield f"precisions = {value_text([FP32.name, FP16.name, INT8.name])}"
    yield f"backends = {value_text(here)}"
    yield from _comments(not_here, "not ")
    yield ""
