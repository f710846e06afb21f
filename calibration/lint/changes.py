"""The ways in which pictures go wrong, each as a change that mends it: another scale, channel order or layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from calibration.arrays import AnyArray

Float32s: TypeAlias = npt.NDArray[np.float32]
ChangeCode = Literal["range", "channels", "layout"]
PixelScale = Literal["unit", "signed", "bytes", "torch", "caffe"]
"""How pixels are stored: 0..1; -1..1; 0..255; less ImageNet's mean, by its std; BGR 0..255 less the mean."""

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
MEAN_OF_BGR = np.array([103.939, 116.779, 123.68], np.float32)
"""ImageNet's: of Torch's models (RGB, 0..1), and of Caffe's (BGR, 0..255)."""
COLOURS: frozenset[PixelScale] = frozenset({"torch", "caffe"})
"""Scales that differ by channel."""
TORCH, CAFFE = "ImageNet's mean and std", "Caffe's preprocessing (BGR, 0..255, less the mean)"
WORDS: dict[PixelScale, dict[PixelScale, str]] = {
    "unit": {"bytes": "× 255", "signed": "× 2 − 1", "torch": TORCH, "caffe": CAFFE},
    "signed": {"unit": "(x + 1) ÷ 2", "bytes": "(x + 1) × 127.5", "torch": TORCH, "caffe": CAFFE},
    "bytes": {"unit": "÷ 255", "signed": "÷ 127.5 − 1 (or (x − 127) ÷ 128)", "torch": TORCH, "caffe": CAFFE},
    "torch": {
        "unit": "× ImageNet's std + mean",
        "bytes": "(× std + mean) × 255",
        "signed": "(× std + mean) × 2 − 1",
        "caffe": CAFFE,
    },
    "caffe": {
        "bytes": "Caffe's mean added, as RGB",
        "unit": "Caffe's mean added, as RGB, ÷ 255",
        "signed": "Caffe's mean added, as RGB, ÷ 127.5 − 1",
        "torch": "ImageNet's mean and std instead of Caffe's",
    },
}
"""What takes pixels from one scale to another.

(x - 127) / 128 is no scale of its own: it is within 0.008 of -1..1, which no network tells apart.
"""


@dataclass(frozen=True)
class Change:
    """One way to read a sample otherwise."""

    code: ChangeCode
    words: str
    """As in: "with ... the model is right"."""
    apply: Callable[[AnyArray], AnyArray]
    """From a sample to a sample of the same shape and dtype."""


def changes_for(sample: AnyArray, low: float, high: float) -> list[Change]:
    """The changes that make sense for samples such as this one, without the batch axis, and of values low to high.

    The simpler ones first: of two that mend as much, the first is named. Bytes have but one scale.
    """
    shape = sample.shape
    axis = channel_axis(shape)
    scalings = _scalings(low, high, axis, shape) if sample.dtype.kind == "f" else {}
    changes = [change for to, change in scalings.items() if to not in COLOURS]
    if axis is not None and shape[axis] == 3:
        changes.append(Change("channels", "the channels in reverse order (BGR and RGB)", lambda x: np.flip(x, axis)))
    if axis is not None and shape[axis] > 1:
        changes.append(Change("layout", layout_words(axis), lambda x: other_layout(x, axis)))
    rows = 1 if axis == 0 else 0
    if axis is not None and shape[rows] == shape[rows + 1]:
        changes.append(Change("layout", "rows and columns exchanged", lambda x: np.swapaxes(x, rows, rows + 1)))
    changes += [change for to, change in scalings.items() if to in COLOURS]
    return [Change(c.code, c.words, _contiguous(c.apply)) for c in changes]


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """0 for pictures (C, H, W), 2 for (H, W, C), with 1 to 4 channels and more rows and columns; else None."""
    if len(shape) != 3:
        return None
    axes = [axis for axis in (0, 2) if shape[axis] <= 4 < min(shape[1], shape[2 - axis])]
    return axes[0] if axes else None


def other_layout(sample: AnyArray, axis: int) -> AnyArray:
    """The same bytes taken for the other layout, and put into this one.

    So a picture that was brought from (H, W, C) to (C, H, W), or back, by a reshape instead of a transpose is mended.
    """
    if axis == 0:
        channels, height, width = sample.shape
        return sample.reshape(height, width, channels).transpose(2, 0, 1)
    height, width, channels = sample.shape
    return sample.reshape(channels, height, width).transpose(1, 2, 0)


def layout_words(axis: int) -> str:
    """What ``other_layout`` does."""
    have, want = ("(H, W, C)", "(C, H, W)") if axis == 0 else ("(C, H, W)", "(H, W, C)")
    return f"the same bytes read as {have} and transposed to {want}"


def _scalings(low: float, high: float, axis: int | None, shape: tuple[int, ...]) -> dict[str, Change]:
    """From the scale that these values have to every other; a factor of 255 where they have none of a picture's."""
    stored, is_colour = _scale_of(low, high), axis is not None and shape[axis] == 3
    factors = {"÷ 255": _factor("÷ 255", 1 / 255), "× 255": _factor("× 255", 255)}
    if stored is None or (stored in COLOURS and not is_colour):
        return factors
    changes: dict[str, Change] = {
        to: _rescaled(stored, to, axis or 0) for to in WORDS[stored] if is_colour or to not in COLOURS
    }
    if axis is None and stored == "signed":
        changes["× 255"] = factors["× 255"]
    return changes


def _scale_of(low: float, high: float) -> PixelScale | None:
    """What values of this range are, if they are pixels."""
    if low >= 0:
        return "unit" if high <= 1 else "bytes" if 2 < high <= 255 else None
    if low >= -1 and high <= 1:
        return "signed"
    if low > -3 and 0 < high < 3:
        return "torch"
    return "caffe" if low >= -124 and 3 < high <= 152 else None


def _factor(words: str, factor: float) -> Change:
    return Change("range", words, lambda x: x.astype(np.float32) * np.float32(factor))


def _rescaled(stored: PixelScale, to: PixelScale, axis: int) -> Change:
    return Change(
        "range", WORDS[stored][to], lambda x: _from_unit(_to_unit(x.astype(np.float32), stored, axis), to, axis)
    )


def _to_unit(x: Float32s, stored: PixelScale, axis: int) -> Float32s:
    """RGB of 0..1 from pixels of another scale."""
    if stored == "signed":
        return (x + 1) * np.float32(0.5)
    if stored == "bytes":
        return x / np.float32(255)
    if stored == "torch":
        return x * _along(STD, axis) + _along(MEAN, axis)
    if stored == "caffe":
        return np.flip((x + _along(MEAN_OF_BGR, axis)) / np.float32(255), axis)
    return x


def _from_unit(x: Float32s, to: PixelScale, axis: int) -> Float32s:
    """Pixels of another scale from RGB of 0..1."""
    if to == "signed":
        return x * 2 - 1
    if to == "bytes":
        return x * np.float32(255)
    if to == "torch":
        return (x - _along(MEAN, axis)) / _along(STD, axis)
    if to == "caffe":
        return np.flip(x, axis) * np.float32(255) - _along(MEAN_OF_BGR, axis)
    return x


def _along(values: Float32s, axis: int) -> Float32s:
    """One value for each channel of a picture."""
    return values.reshape((3, 1, 1) if axis == 0 else (1, 1, 3))


def _contiguous(apply: Callable[[AnyArray], AnyArray]) -> Callable[[AnyArray], AnyArray]:
    """The same in the sample's dtype and in the order in memory that runtimes take."""
    return lambda x: np.ascontiguousarray(apply(x), dtype=x.dtype)
