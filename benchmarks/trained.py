"""Trained networks for the benchmarks of INT8's accuracy, with their samples, preprocessed.

FOLDER is laid out as for `benchmarks/networks.py`; `efficientnet_lite1/` and `ppocr_rec/` are taken up where they are
there. A network with swish and squeeze-and-excite is trained here on Fashion-MNIST, in seven CPU minutes, and kept;
so are the three of `benchmarks/transformers.py`.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.candidates import python
from benchmarks.networks import NETWORKS, Network
from benchmarks.transformers import transformers
from calibration.data.preprocess import Preprocess

Floats = npt.NDArray[np.float32]
FASHION = "fashion_mnist/fashion_mnist_subset.npz"
NUM_TRAINING = 9000
"""Of Fashion-MNIST's test split, with which the network with swish is trained; the rest is for its evaluation."""
PPOCR_SCALE = 0.00784313725
PPOCR_SPACE = 6624
SWISH_NAME = "Swish and squeeze-and-excite, Fashion-MNIST"
LITE_NAME = "EfficientNet-Lite1, ImageNet"
TEXT_NAME = "PP-OCRv4, text recognition"

SWISH = """
import sys, numpy as np, keras
from keras import layers
data, num, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
epochs, batch = 4, 64
keras.utils.set_random_seed(1)
def conv(x, n, size=1):
    return layers.BatchNormalization(momentum=0.9)(layers.Conv2D(n, size, padding="same", use_bias=False)(x))
def swish(x):
    return layers.Activation("swish")(x)
def block(x, n, stride):
    inner = 4 * x.shape[-1]
    y = layers.DepthwiseConv2D(3, stride, "same", use_bias=False)(swish(conv(x, inner)))
    y = swish(layers.BatchNormalization(momentum=0.9)(y))
    gate = layers.GlobalAveragePooling2D(keepdims=True)(y)
    gate = layers.Conv2D(max(4, x.shape[-1] // 4), 1, activation="swish")(gate)
    y = conv(layers.Multiply()([y, layers.Conv2D(inner, 1, activation="sigmoid")(gate)]), n)
    return layers.Add()([x, y]) if stride == 1 and x.shape[-1] == n else y
image = layers.Input((28, 28, 1), name="image")
x = swish(conv(image, 16, 3))
for n, stride in ((16, 1), (24, 2), (24, 1), (40, 2), (40, 1), (40, 1), (64, 2), (64, 1)):
    x = block(x, n, stride)
x = layers.GlobalAveragePooling2D()(swish(conv(x, 160)))
model = keras.Model(image, layers.Dense(10, activation="softmax")(x))
stored = np.load(data)
images, labels = stored["x_test"][:num].reshape(-1, 28, 28, 1) / np.float32(255), stored["y_test"][:num]
rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * (num // batch))
model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
model.fit(images, labels, batch_size=batch, epochs=epochs, verbose=0)
model.export(out)
"""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network and its samples, each (N, ...)."""

    name: str
    source: Path
    calibration: Floats
    evaluation: Floats
    labels: npt.NDArray[np.int64]
    """Of the evaluation samples: (N,) classes, or (N, L) of a line of text, padded with -1."""
    tflite: Path | None = None
    """The INT8 model that came with it."""
    space: int = -1
    """Of text, the class of a space."""

    @property
    def is_text(self) -> bool:
        """Whether it reads text, by CTC."""
        return self.labels.ndim == 2


def trained_networks(folder: Path, cache: Path, only: str = "") -> Iterator[Trained]:
    """What is there of those whose names have ``only``; what is trained here is kept in ``cache``."""
    for known in NETWORKS:
        if only in known.name and (folder / known.source).is_dir():  # Not the Keras files of the same weights.
            yield _small(known, folder)
    for name, make in {SWISH_NAME: _swish, LITE_NAME: _lite, TEXT_NAME: _text}.items():
        if only in name:
            yield from make(folder, cache)
    for name, source, calibration, evaluation, labels in transformers(folder / FASHION, cache, only):
        yield Trained(name, source, calibration, evaluation, labels)


def evenly(network: Trained, num: int) -> Trained:
    """With at most so many of its evaluation samples, evenly spread."""
    at = np.linspace(0, len(network.labels) - 1, min(num, len(network.labels))).astype(int)
    samples, labels = network.evaluation[at], network.labels[at]
    return replace(network, evaluation=samples, labels=labels)


def _small(known: Network, folder: Path) -> Trained:
    preprocess = Preprocess(scale=known.scale, dtype="float32")
    with np.load(folder / known.data) as stored:
        calibration, evaluation = (np.asarray(preprocess(stored[key]), np.float32) for key in ("x_calib", "x_test"))
        labels = stored["y_test"].astype(np.int64)
    tflite = folder / known.tflite if known.tflite else None
    return Trained(known.name, folder / known.source, calibration, evaluation, labels, tflite)


def _swish(folder: Path, cache: Path) -> Iterator[Trained]:
    if not (folder / FASHION).exists():
        return
    source = cache.resolve() / "swish_fashion_mnist"
    if not source.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if failure := python(sys.executable, SWISH, folder / FASHION, NUM_TRAINING, source):
            raise SystemExit(failure)
    with np.load(folder / FASHION) as stored:
        scaled = [stored[key].reshape(-1, 28, 28, 1) / np.float32(255) for key in ("x_calib", "x_test")]
        labels = stored["y_test"][NUM_TRAINING:].astype(np.int64)
    yield Trained(SWISH_NAME, source, scaled[0], scaled[1][NUM_TRAINING:], labels)


def _lite(folder: Path, _cache: Path) -> Iterator[Trained]:
    lite = folder / "efficientnet_lite1"
    if lite.exists():
        (calibration, _), (evaluation, labels) = (_photos(lite, kind) for kind in ("calibration", "evaluation"))
        source = lite / "efficientnet_lite1_savedmodel"
        yield Trained(LITE_NAME, source, calibration, evaluation, labels)


def _photos(folder: Path, kind: str) -> tuple[Floats, npt.NDArray[np.int64]]:
    """(N, 240, 240, 3): (x - 127) / 128; and the labels."""
    with (folder / f"{kind}.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    images = [np.asarray(Image.open(folder / kind / row["file"]).convert("RGB"), np.float32) for row in rows]
    return (np.stack(images) - np.float32(127)) / np.float32(128), np.array([int(row["label"]) for row in rows])


def _text(folder: Path, _cache: Path) -> Iterator[Trained]:
    text = folder / "ppocr_rec"
    if text.exists():
        preprocess = Preprocess(scale=PPOCR_SCALE, mean=(1.0,), layout="nchw", dtype="float32")
        with np.load(text / "lines.npz") as stored:
            calibration, evaluation = (
                np.ascontiguousarray(preprocess(stored[key]), np.float32) for key in ("x_calib", "x_test")
            )
            labels = stored["y_test_index"].astype(np.int64)
        source = text / "ch_PP-OCRv4_rec.onnx"
        yield Trained(TEXT_NAME, source, calibration, evaluation, labels, space=PPOCR_SPACE)
