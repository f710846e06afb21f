"""Three small transformers, trained on Fashion-MNIST in a few CPU minutes each, for the benchmark of INT8's accuracy.

- As a vision transformer: patches of 4 x 4, layers norm first, Keras's own MultiHeadAttention.
- As BERT: tokens (the brightness of squares in 32 steps, after a first one that the head reads), padded to 50, norm
  last; scores divided by the root of the head size behind the product, masked by adding the lowest float32.
- An encoder of sequences of several lengths: a row of the picture is a step; steps that are all 0 are padding, masked
  with -inf as PyTorch's layers do.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.candidates import python

NUM_TRAINING = 9000
"""Of Fashion-MNIST's test split, with which they are trained; the rest is for their evaluation."""
NUM_TOKENS, NUM_LEVELS = 50, 32
VISION_NAME = "Vision transformer, Fashion-MNIST"
BERT_NAME = "BERT-like, tokens of Fashion-MNIST"
ENCODER_NAME = "Encoder with a mask, rows of Fashion-MNIST"

COMMON = """
import sys, numpy as np, keras
from keras import layers, ops
data, num, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stored = np.load(data)
samples, labels = stored["samples"][:num], stored["labels"][:num]
keras.utils.set_random_seed(1)
width, heads, epochs, batch = 64, 4, 5, 64
def norm(x):
    return layers.LayerNormalization(epsilon=1e-6)(x)
def feed_forward(x):
    return layers.Dense(width)(layers.Dense(4 * width, activation="gelu")(x))
class Position(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(1, *shape[1:]), initializer="random_normal", name="table")
    def call(self, x):
        return x + self.table
class Attention(layers.Layer):
    def __init__(self, masked):
        super().__init__()
        self.masked = masked
        self.parts = [layers.Dense(width, name=name) for name in ("query", "key", "value", "output")]
    def heads(self, x):
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], heads, width // heads)), (0, 2, 1, 3))
    def call(self, x, there):
        query, key, value = (self.heads(part(x)) for part in self.parts[:3])
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) / ops.sqrt(ops.cast(width // heads, x.dtype))
        y = ops.matmul(ops.softmax(self.masked(scores, there[:, None, None, :])), value)
        return self.parts[3](ops.reshape(ops.transpose(y, (0, 2, 1, 3)), (-1, x.shape[1], width)))
def train(inputs, x):
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(x))
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * (num // batch))
    model.compile(keras.optimizers.AdamW(rate), "sparse_categorical_crossentropy")
    model.fit(samples, labels, batch_size=batch, epochs=epochs, verbose=0)
    model.export(out)
"""
VISION = """
image = layers.Input((28, 28, 1), name="image")
x = Position()(layers.Reshape((49, width))(layers.Conv2D(width, 4, 4)(image)))
for _ in range(3):
    y = norm(x)
    x = x + layers.MultiHeadAttention(heads, width // heads)(y, y)
    x = x + feed_forward(norm(x))
train(image, layers.GlobalAveragePooling1D()(norm(x)))
"""
BERT = """
class Pooled(layers.Layer):
    def call(self, x):
        return x[:, 0]
class There(layers.Layer):
    def call(self, tokens):
        return tokens > 0
lowest = float(np.finfo(np.float32).min)
tokens = layers.Input((50,), dtype="int32", name="tokens")
there = There()(tokens)
x = norm(Position()(layers.Embedding(34, width)(tokens)))
for _ in range(3):
    masked = lambda scores, there: scores + (1 - ops.cast(there, scores.dtype)) * lowest
    x = norm(x + Attention(masked)(x, there))
    x = norm(x + feed_forward(x))
train(tokens, layers.Dense(width, activation="tanh")(Pooled()(x)))
"""
ENCODER = """
class There(layers.Layer):
    def call(self, x):
        return ops.any(x != 0, axis=-1)
class Mean(layers.Layer):
    def call(self, x, there):
        weights = ops.cast(there, x.dtype)[:, :, None]
        return ops.sum(x * weights, axis=1) / ops.sum(weights, axis=1)
rows = layers.Input((28, 28), name="rows")
there = There()(rows)
x = Position()(layers.Dense(width)(rows))
for _ in range(3):
    masked = lambda scores, there: ops.where(there, scores, -float("inf"))
    x = x + Attention(masked)(norm(x), there)
    x = x + feed_forward(norm(x))
train(rows, Mean()(norm(x), there))
"""
CODE = {VISION_NAME: VISION, BERT_NAME: BERT, ENCODER_NAME: ENCODER}

Samples = npt.NDArray[Any]
"""Pictures in float32, or tokens in int32."""


def pictures(images: npt.NDArray[np.uint8]) -> Samples:
    """(N, 28, 28, 1) from 0 to 1."""
    return np.asarray(images.reshape(-1, 28, 28, 1) / np.float32(255), np.float32)


def tokens(images: npt.NDArray[np.uint8]) -> Samples:
    """(N, 50): 1, then the brightness of the squares of 4 x 4, 2 to 33; of each fifth picture the last rows are 0."""
    squares = images.reshape(-1, 7, 4, 7, 4).mean(axis=(2, 4)).reshape(-1, NUM_TOKENS - 1)
    ids = np.ones((len(images), NUM_TOKENS), np.int32)
    ids[:, 1:] = 2 + (squares * NUM_LEVELS / 256).astype(np.int32)
    ids[::5, -7:] = 0
    return ids


def rows(images: npt.NDArray[np.uint8]) -> Samples:
    """(N, 28, 28) from 0.1 to 1.1, so that a step is never 0; of each fifth picture the last four steps are 0."""
    steps = np.asarray(images.reshape(-1, 28, 28) / np.float32(255) + np.float32(0.1), np.float32)
    steps[::5, -4:] = 0
    return steps


SAMPLES = {VISION_NAME: pictures, BERT_NAME: tokens, ENCODER_NAME: rows}


def transformers(data: Path, cache: Path, only: str) -> Iterator[tuple[str, Path, Samples, Samples, Samples]]:
    """Name, SavedModel, samples for calibration and for evaluation, and the labels of the latter.

    Args:
        data: the .npz of Fashion-MNIST.
        cache: where those that are trained are kept.
        only: a part of the names.
    """
    if not data.exists():
        return
    with np.load(data) as stored:
        calibration, evaluation, labels = (stored[key] for key in ("x_calib", "x_test", "y_test"))
    for name in (name for name in CODE if only in name):
        source = cache.resolve() / name.split(",")[0].lower().replace(" ", "_")
        made = SAMPLES[name](evaluation)
        if not source.exists():
            cache.mkdir(parents=True, exist_ok=True)
            np.savez(source.with_suffix(".npz"), samples=made, labels=labels)
            failure = python(sys.executable, COMMON + CODE[name], source.with_suffix(".npz"), NUM_TRAINING, source)
            if failure:
                raise SystemExit(failure)
        yield name, source, SAMPLES[name](calibration), made[NUM_TRAINING:], labels[NUM_TRAINING:].astype(np.int64)
