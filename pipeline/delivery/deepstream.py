"""A folder for DeepStream's Gst-nvinfer: the engine, and ``config_infer.txt`` that agrees with it.

nvinfer builds its own engine at every start where file and configuration do not agree, so what is written here follows
from the engine's record alone. Its preprocessing is ``y = net-scale-factor * (x - offsets[c])`` for x from 0 to 255:
one factor for all channels, means in grey levels; what else a plan's ``[data.preprocess]`` does cannot be said there.
What it makes are floats. Where the network takes the bytes themselves ([export] fold_preprocess), Gst-nvdspreprocess
makes the tensor, by ``config_preprocess.txt``, and nvinfer takes it as it is (``input-tensor-from-meta``).
Keys and enumerations: the pages "Gst-nvinfer" and "Gst-nvdspreprocess" of the DeepStream developer guide, and
gstnvinfer_property_parser.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from calibration.data.preprocess import Preprocess
from calibration.data.source import DYNAMIC
from pipeline.delivery.contents import Delivered, make_folder
from pipeline.errors import ConfigError
from pipeline.output import put, work_folder

CONFIG = "config_infer.txt"
PREPROCESS_CONFIG = "config_preprocess.txt"
"""For Gst-nvdspreprocess, of a network that takes bytes."""
PREPROCESS_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/gst-plugins/libcustom2d_preprocess.so"
"""DeepStream's own, where its packages put it."""
BYTES = "uint8"
DATA_TYPES = {BYTES: 1}
"""Of Gst-nvdspreprocess's tensors."""
NetworkType = Literal["detector", "classifier", "segmentation", "other"]
NETWORK_TYPES: dict[NetworkType, int] = {"detector": 0, "classifier": 1, "segmentation": 2, "other": 100}
NETWORK_MODES = {"fp32": 0, "int8": 1, "fp16": 2}
COLOR_FORMATS = {"rgb": 0, "bgr": 1, "gray": 2}
INPUT_ORDERS = {"nchw": 0, "nhwc": 1}
RUNS = ("tensorrt",)
"""Backends whose engines nvinfer runs."""
NUM_COLORS = {3: "rgb", 1: "gray"}
"""Number of channels -> the colors of samples that the plan keeps as they are stored."""


@dataclass(frozen=True)
class CameraPicture:
    """The engine's input, as nvinfer has to make it."""

    order: Literal["nchw", "nhwc"]
    channels: int
    height: int
    width: int
    color: str
    factor: float
    offsets: tuple[float, ...]
    letterbox: bool
    of_bytes: bool = False
    """The network takes the bytes of the picture, and does the arithmetic itself."""


def picture_from(engine: Delivered, preprocess: Preprocess) -> CameraPicture:
    """What nvinfer has to do to a frame.

    Raises:
        ConfigError: the engine takes no picture of one size, or the preprocessing cannot be said in DeepStream.
    """
    if len(engine.inputs) != 1 or len(engine.inputs[0].shape) != 4 or DYNAMIC in engine.inputs[0].shape[1:]:
        raise ConfigError(f"{engine.name}: does not take one picture of a fixed size, which is all that nvinfer gives")
    spec = engine.inputs[0]
    of_bytes = spec.dtype == BYTES
    if spec.dtype not in ("float32", "float16", BYTES):
        raise ConfigError(f"{engine.name}: takes {spec.dtype}, nvinfer gives floats")
    if of_bytes and replace(preprocess, dtype="keep") != preprocess.of_bytes():
        raise ConfigError(
            f"{engine.name}: takes {spec.dtype}, so that it preprocesses by itself, and [data.preprocess] says "
            f"{preprocess.describe()}; give the plan that it was built by, with [export] fold_preprocess"
        )
    sizes = spec.shape[1:]
    order: Literal["nchw", "nhwc"] = "nchw" if sizes[0] in NUM_COLORS else "nhwc"
    channels, height, width = sizes if order == "nchw" else (sizes[2], *sizes[:2])
    if channels not in NUM_COLORS:
        raise ConfigError(
            f"{engine.name}: its input has the shape {spec.shape}, of which no dimension is 3 or 1 colors"
        )
    _check_steps(preprocess)
    stds = set(preprocess.std) or {1.0}
    if len(stds) > 1:
        raise ConfigError(
            f"[data.preprocess] std: is {list(preprocess.std)}, and DeepStream has one factor for all channels; let "
            "the network divide, by [export] fold_preprocess"
        )
    means = preprocess.mean * channels if len(preprocess.mean) == 1 else preprocess.mean
    if len(means) not in (0, channels):
        raise ConfigError(f"[data.preprocess] mean: has {len(means)} numbers, the input has {channels} channels")
    color = NUM_COLORS[channels] if preprocess.channels == "keep" else preprocess.channels
    return CameraPicture(
        order=order,
        channels=channels,
        height=height,
        width=width,
        color=color,
        factor=preprocess.scale / stds.pop(),
        offsets=tuple(mean / preprocess.scale for mean in means),
        letterbox=preprocess.fit == "letterbox",
        of_bytes=of_bytes,
    )


def deliver_to_deepstream(engine: Delivered, picture: CameraPicture, kind: NetworkType, folder: Path) -> Path:
    """Write the engine and, last, the configuration; returns the configuration's path.

    Raises:
        ConfigError: it is no engine of TensorRT, or has no batch; or the folder cannot be written.
        Unavailable: the disk is full.
    """
    if engine.backend not in RUNS:
        raise ConfigError(f"{engine.name}: is an engine of {engine.backend}, and DeepStream runs TensorRT's")
    name = engine_name(engine)
    make_folder(folder, [name, PREPROCESS_CONFIG, CONFIG])
    with work_folder(folder / CONFIG) as work:
        shutil.copyfile(engine.path, work / name)
        put(work / name, folder / name, work)
        if picture.of_bytes:
            (work / PREPROCESS_CONFIG).write_text(preprocess_text(engine, picture), encoding="utf-8")
            put(work / PREPROCESS_CONFIG, folder / PREPROCESS_CONFIG, work)
        (work / CONFIG).write_text(config_text(engine, picture, kind), encoding="utf-8")
        put(work / CONFIG, folder / CONFIG, work)
    return folder / CONFIG


def engine_name(engine: Delivered) -> str:
    """As DeepStream names what it builds itself from ``model.onnx``."""
    return f"model.onnx_b{batch_size(engine)}_gpu0_{engine.precision}.engine"


def batch_size(engine: Delivered) -> int:
    """The largest batch that the engine takes."""
    return engine.max_batch or engine.inputs[0].shape[0]


def config_text(engine: Delivered, picture: CameraPicture, kind: NetworkType) -> str:
    """The text of config_infer.txt."""
    lines = [f"{key}={value}" for key, value in _properties(engine, picture, kind)]
    return "\n".join(["[property]", *lines]) + "\n"


def preprocess_text(engine: Delivered, picture: CameraPicture) -> str:
    """The text of config_preprocess.txt, for whole frames of as many streams as the engine takes at once."""
    sections: dict[str, Iterable[tuple[str, object]]] = {
        "property": _tensor_properties(engine, picture),
        "user-configs": (("pixel-normalization-factor", 1),),
        "group-0": (
            ("src-ids", ";".join(map(str, range(batch_size(engine))))),
            ("process-on-roi", 0),
            ("custom-input-transformation-function", "CustomAsyncTransformation"),
        ),
    }
    texts = ["\n".join([f"[{name}]", *(f"{key}={value}" for key, value in pairs)]) for name, pairs in sections.items()]
    return "\n\n".join(texts) + "\n"


def _tensor_properties(engine: Delivered, picture: CameraPicture) -> Iterator[tuple[str, object]]:
    (spec,) = engine.inputs
    yield "enable", 1
    yield "unique-id", 2
    yield "target-unique-ids", 1
    yield "gpu-id", 0
    yield "process-on-frame", 1
    yield "network-input-order", INPUT_ORDERS[picture.order]
    yield "network-input-shape", ";".join(map(str, (batch_size(engine), *spec.shape[1:])))
    yield "processing-width", picture.width
    yield "processing-height", picture.height
    yield "network-color-format", COLOR_FORMATS[picture.color]
    yield "tensor-data-type", DATA_TYPES[spec.dtype]
    yield "tensor-name", spec.name
    yield "maintain-aspect-ratio", int(picture.letterbox)
    yield "symmetric-padding", int(picture.letterbox)
    yield "custom-lib-path", PREPROCESS_LIBRARY
    yield "custom-tensor-preparation-function", "CustomTensorPreparation"


def _properties(engine: Delivered, picture: CameraPicture, kind: NetworkType) -> Iterator[tuple[str, object]]:
    yield "gpu-id", 0
    yield "gie-unique-id", 1
    yield "model-engine-file", engine_name(engine)
    yield "batch-size", batch_size(engine)
    yield "network-mode", NETWORK_MODES[engine.precision]
    yield "network-type", NETWORK_TYPES[kind]
    yield "infer-dims", f"{picture.channels};{picture.height};{picture.width}"
    yield "network-input-order", INPUT_ORDERS[picture.order]
    yield "model-color-format", COLOR_FORMATS[picture.color]
    yield "net-scale-factor", f"{picture.factor:.17g}"
    if picture.of_bytes:
        yield "offsets", ";".join(["0"] * picture.channels)
        yield "input-tensor-from-meta", 1
    if picture.offsets:
        yield "offsets", ";".join(f"{offset:.9g}" for offset in picture.offsets)
    yield "maintain-aspect-ratio", int(picture.letterbox)
    if picture.letterbox:
        yield "symmetric-padding", 1
    yield "output-blob-names", ";".join(spec.name for spec in engine.outputs)
    if kind == "other":
        yield "output-tensor-meta", 1


def _check_steps(preprocess: Preprocess) -> None:
    """Steps that nvinfer has none for."""
    if preprocess.crop:
        raise ConfigError("[data.preprocess] crop: DeepStream cuts nothing from the centre; resize to the whole input")
    if len(preprocess.resize) == 1:
        raise ConfigError(
            "[data.preprocess] resize: the shorter side is resized, which DeepStream does not do; give height and width"
        )
    if preprocess.fit == "letterbox" and preprocess.fill:
        raise ConfigError(
            f"[data.preprocess] fill: is {preprocess.fill:g}, and DeepStream pads with 0; calibrate with fill = 0"
        )
