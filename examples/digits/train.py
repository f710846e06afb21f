"""Train a small residual CNN on scikit-learn's handwritten digits and save it as a TensorFlow SavedModel.

Writes `data/savedmodel/` and `data/digits.npz` beside this file. The 1797 digits are split into 1000 for training,
200 for calibration and 597 for evaluation, each class in its share; no sample is in two of them.
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from calibration.data.preprocess import Preprocess

FOLDER = Path(__file__).resolve().parent
DATA = FOLDER / "data"
NUM_TRAIN, NUM_CALIBRATION = 1000, 200


def normalized(x: keras.KerasTensor) -> keras.KerasTensor:
    """Batch norm whose averages settle in the few steps that this training has."""
    return layers.BatchNormalization(momentum=0.9)(x)


def block(x: keras.KerasTensor, width: int, stride: int) -> keras.KerasTensor:
    """A depthwise-separable residual block: what a network for a small device is made of."""
    y = layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False)(x)
    y = layers.ReLU(6.0)(normalized(y))
    y = normalized(layers.Conv2D(width, 1, use_bias=False)(y))
    if stride == 1 and x.shape[-1] == width:
        y = layers.Add()([x, y])
    return layers.ReLU()(y)


def network() -> keras.Model:
    """(N, 32, 32, 1) float32 in, (N, 10) probabilities out."""
    image = keras.Input((32, 32, 1), name="image")
    x = layers.Conv2D(32, 3, 2, padding="same", use_bias=False)(image)
    x = layers.ReLU()(normalized(x))
    x = layers.ReLU()(normalized(layers.Conv2D(64, 3, padding="same", use_bias=False)(x)))
    for width, stride in ((64, 1), (96, 2), (96, 1)):
        x = block(x, width, stride)
    x = layers.ReLU()(layers.Conv2D(128, 3, padding="same")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="digit")(x))


def main() -> None:
    """Train, say how well it went on held-out digits, and save."""
    keras.utils.set_random_seed(1)
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int64)
    x_train, x_rest, y_train, y_rest = train_test_split(
        images, labels, train_size=NUM_TRAIN, stratify=labels, random_state=1
    )
    x_calibration, x_evaluation, y_calibration, y_evaluation = train_test_split(
        x_rest, y_rest, train_size=NUM_CALIBRATION, stratify=y_rest, random_state=1
    )
    table = tomllib.loads((FOLDER / "plan.toml").read_text())["data"]["preprocess"]
    preprocess = Preprocess(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})

    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(preprocess(x_train), y_train, batch_size=32, epochs=int(os.environ.get("EPOCHS", "12")), verbose=0)
    _, accuracy = model.evaluate(preprocess(x_evaluation), y_evaluation, verbose=0)
    DATA.mkdir(exist_ok=True)
    model.export(DATA / "savedmodel", verbose=False)
    np.savez_compressed(
        DATA / "digits.npz",
        x_calibration=x_calibration,
        y_calibration=y_calibration,
        x_evaluation=x_evaluation,
        y_evaluation=y_evaluation,
    )
    print(json.dumps({"trained_on": len(x_train), "evaluation_accuracy": round(float(accuracy), 4)}))


if __name__ == "__main__":
    main()
