"""What is done to pictures before a network sees them: its input says the size and the layout, the scale is evidence.

A scale that was folded into weights leaves no trace in the graph. With labels the network itself tells: it is run on
the same samples in each of the usual scales, and one is taken if it is right more often than with every other one
(McNemar's exact test, at two looks). Without evidence the scale is asked, never taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray, Bools
from calibration.data.batches import open_samples
from calibration.data.labels.boxes import frame_in, is_box_table
from calibration.data.preprocess import Preprocess
from calibration.data.source import DYNAMIC, DataSource, InputSpec
from calibration.graph.weightless import skeleton_from_file
from calibration.lint.changes import MEAN, MEAN_OF_BGR, STD
from calibration.lint.input_scale import rescalings
from engines import backend
from pipeline.accuracy.metrics import metric
from pipeline.artifact import OnnxModel
from pipeline.drafting.class_labels import why_no_classes
from pipeline.drafting.facts import Preprocessing
from pipeline.engine_runner import SIMULATOR, Sessions
from pipeline.stats.proportions import mcnemar

LOOKS = (128, 1024)
"""Labelled samples on which scales are tried: so many, and where those do not decide, more."""
SIGNIFICANCE = 0.005
"""Of one look."""
BYTES = 255.0
LEAST_STEP_OF_BYTES = 16.0
"""A network that divides its input by so much takes pixels from 0 to 255."""
MOST_STEP_OF_UNITS = 1.0
COLOURS = (1, 3)
BATCH_SIZE = 16
SQUARE = 0.98
"""A ratio of two scales: pixels of rounded sizes are about so square."""


@dataclass(frozen=True)
class UsualScale:
    """A usual way to store pixels."""

    name: str
    scale: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    is_bgr: bool = False

    def of(self, options: Preprocess) -> Preprocess:
        """The options with pixels in this scale."""
        channels = "bgr" if self.is_bgr else options.channels
        return replace(options, scale=self.scale, mean=self.mean, std=self.std, channels=channels)


def _numbers(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in values)


SCALES = (
    UsualScale("0 to 255", 1.0),
    UsualScale("0 to 1", 1 / BYTES),
    UsualScale("-1 to 1", 2 / BYTES, (1.0,)),
    UsualScale("ImageNet's mean and std, as torchvision", 1 / BYTES, _numbers(MEAN), _numbers(STD)),
    UsualScale("ImageNet's mean, BGR, as Caffe", 1.0, _numbers(MEAN_OF_BGR), is_bgr=True),
)
"""Those with a mean for each channel are for pictures in colour alone."""


def shape_of_pictures(spec: InputSpec) -> Preprocessing:
    """Size, layout, channels and dtype, as the input says; the scale is not known yet."""
    last, first = spec.shape[-1], spec.shape[1]
    is_first = first in COLOURS and last not in COLOURS
    if not is_first and last not in COLOURS:
        return Preprocessing().asking(
            "layout", f"the input '{spec.name}' {spec.shape} has no axis of 1 or 3 channels: what is it?"
        )
    height, width = spec.shape[2:] if is_first else spec.shape[1:3]
    options = Preprocess(
        channels="gray" if 1 in ((first if is_first else last),) else "rgb",
        layout="nchw" if is_first else "keep",
        dtype=spec.dtype,  # type: ignore[arg-type]  # A dtype that it does not know is refused there.
    )
    if DYNAMIC in (height, width):
        text = (
            f"the input '{spec.name}' takes pictures of any size: which one is it to be? Write resize = [HEIGHT, WIDTH]"
        )
        return Preprocessing(options).asking("resize", text)
    note = (
        f"size, layout and channels as the input '{spec.name}' {spec.shape} says; if pictures were cropped in "
        "training, write resize = [SHORTER_SIDE] and crop = [HEIGHT, WIDTH]"
    )
    return Preprocessing(replace(options, resize=(height, width)), (note,))


def with_fit(known: Preprocessing, labels: AnyArray) -> Preprocessing:
    """The same, asking how pictures are brought to the input's shape where a detector's would be stretched: labels that
    are boxes say in what scale each picture lies in the input.
    """  # fmt: skip
    if not is_box_table(labels) or not known.options.resize:
        return known
    frames = [frame_in(row) for row in labels.astype(np.float64)]
    stretched = [frame for frame in frames if not SQUARE <= frame.scale_x / frame.scale_y <= 1 / SQUARE]
    if not stretched:
        return known
    first = stretched[0]
    return known.asking(
        "fit",
        f"{len(stretched)} of {len(frames)} pictures, such as one of {first.width:g} x {first.height:g}, have another "
        f"aspect than the input of {first.input_width:g} x {first.input_height:g}: was the detector trained on "
        'pictures in a frame (fit = "letterbox", as YOLO; its gray is fill = 114.0) or on stretched ones (fit = '
        '"stretch")?',
    )


@dataclass(frozen=True)
class LabelledData:
    """What scales are tried on."""

    source: DataSource
    """Where it lies, from here; without labels nothing is tried."""
    specs: tuple[InputSpec, ...]
    output: str
    """The output that has a score for each class."""
    num_classes: int = DYNAMIC
    """Of it."""


def with_scale(known: Preprocessing, model: OnnxModel, data: LabelledData) -> Preprocessing:
    """The same with the scale of the pixels, by the graph or by labels; else with a question.

    Raises:
        DataError: the samples or their labels cannot be read.
    """
    spec = data.specs[0]
    if np.dtype(spec.dtype).kind != "f":
        return known
    remembered = rescalings(skeleton_from_file(model.path)).get(spec.name)
    if remembered is not None and np.median(remembered.std) >= LEAST_STEP_OF_BYTES:
        return known.with_scale(1.0, (), (), f"pixels from 0 to 255: the network {remembered.describe()}")
    if remembered is not None and np.median(remembered.std) < MOST_STEP_OF_UNITS:
        return known.with_scale(1 / BYTES, (), (), f"pixels from 0 to 1: the network {remembered.describe()}")
    if known.questions:
        return known.asking("scale", f"which scale do pixels have? {_choices()} It is tried once the rest is known")
    if not data.source.labels or not data.output:
        return known.asking(
            "scale", f"which scale do pixels have? {_choices()} With class labels the network itself would tell"
        )
    return _by_labels(known, model, data)


def _choices() -> str:
    return f"Usual are {'; '.join(f'{scale.name} ({_toml(scale)})' for scale in SCALES)}."


def _toml(scale: UsualScale) -> str:
    parts = [f"scale = {scale.scale:.12g}"]
    parts += [f"mean = {list(scale.mean)}"] if scale.mean else []
    parts += [f"std = {list(scale.std)}"] if scale.std else []
    parts += ['channels = "bgr"'] if scale.is_bgr else []
    return ", ".join(parts)


def _by_labels(known: Preprocessing, model: OnnxModel, data: LabelledData) -> Preprocessing:
    """The scale in which the network is right more often than in every other one."""
    if reason := backend(SIMULATOR).why_not_run():
        return known.asking("scale", f"which scale do pixels have? {_choices()} It cannot be tried: {reason}")
    shape = data.specs[0].shape
    in_colour = max(COLOURS) in (shape[1], shape[-1])
    labels = open_samples(data.source, data.specs, known.options, Path()).labels()
    if reason := why_no_classes(labels, data.num_classes):
        return known.asking("scale", f"which scale do pixels have? {_choices()} Labels do not tell: for top1 {reason}")
    if in_colour and known.options.layout == "keep" and shape[-1] != max(COLOURS):
        text = "It cannot be tried on pictures stored with their channels first: store them as (N, H, W, 3)"
        return known.asking("scale", f"which scale do pixels have? {_choices()} {text}")
    scales = [scale for scale in SCALES if in_colour or len(scale.mean) < max(COLOURS)]
    counted = []
    for num in LOOKS:
        with ExitStack() as stack:
            right = dict(_right(known, model, (data, scales, num), stack))
        best = max(right, key=lambda scale: int(right[scale].sum()))
        counts = "; ".join(f"{scale.name} {int(rows.sum())}" for scale, rows in right.items())
        counted.append(f"of {len(right[best])} labelled samples the network is right on: {counts}")
        left = [scale for scale in scales if scale is not best and _p_value(right[best], right[scale]) >= SIGNIFICANCE]
        if not left:
            note = f"pixels as {best.name}: {'; '.join(counted)}"
            return replace(known, options=best.of(known.options), notes=(*known.notes, note))
        if len(right[best]) < num:
            break
        scales = [best, *left]
    question = f"which scale do pixels have? {'; '.join(counted)}, which does not decide. {_choices()}"
    return known.asking("scale", question[:1].upper() + question[1:])


def _p_value(first: Bools, second: Bools) -> float:
    return mcnemar(int((first & ~second).sum()), int((second & ~first).sum()))


def _right(
    known: Preprocessing, model: OnnxModel, tried: tuple[LabelledData, list[UsualScale], int], stack: ExitStack
) -> Iterator[tuple[UsualScale, Bools]]:
    """For each scale: on which samples, of at most so many, the network is right."""
    data, scales, num = tried
    runner, judge = Sessions(stack, SIMULATOR, 0).of_file(model.path), metric("top1", data.output)
    for scale in scales:
        samples = open_samples(replace(data.source, limit=num), data.specs, scale.of(known.options), Path())
        answers = [runner(batch)[data.output] for batch in samples.batches(samples.fixed_batch or BATCH_SIZE)]
        yield scale, judge.correct({data.output: np.concatenate(answers)}, samples.labels())
