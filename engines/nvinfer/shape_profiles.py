"""Optimization profiles: the shapes that an engine is built for. ``trt`` is of TensorRT or TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engines.contract import DYNAMIC, BuildOptions, GivenBatches, ShapeRange
from engines.errors import EngineError
from engines.onnx_model import shape_text


def add_profiles(builder: Any, config: Any, network: Any, options: BuildOptions) -> None:
    """A profile for each that the options have, with a range for each dynamic input; none if all shapes are fixed.

    Raises:
        EngineError: a dynamic input has no range in one of them, or the builder refuses one.
    """
    dynamic = dynamic_inputs(network)
    if not dynamic:
        return
    for number, ranges in enumerate(options.profiles() or ({},)):
        if config.add_optimization_profile(_profile(builder, dynamic, ranges)) < 0:
            raise EngineError(f"optimization profile {number} is refused")


def calibration_shapes(network: Any, options: BuildOptions) -> dict[str, tuple[int, ...]]:
    """The shape of each input that calibration runs in: where it is dynamic, ``opt`` of the first profile.

    With batches to calibrate on, their size stands for the first dimension wherever that is dynamic.

    Raises:
        EngineError: the network takes batches of one size, and the calibration batches have another.
    """
    size = options.native.batch_size if isinstance(options.native, GivenBatches) else 0
    shapes = _inputs(network)
    for name, shape in shapes.items():
        if size and shape[:1] not in ((size,), (DYNAMIC,)):
            raise EngineError(
                f"input '{name}' is {shape_text(shape)}, calibration batches have {size} samples; set "
                f"native_batch_size = {shape[0] if shape else 1}"
            )
        if DYNAMIC in shape:
            usual = options.shapes[name].opt
            shapes[name] = (size, *usual[1:]) if size and shape[0] == DYNAMIC else usual
    return shapes


def calibration_profile(builder: Any, network: Any, shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """The profile to calibrate in, of which TensorRT's calibrators take ``opt``; None if all shapes are fixed."""
    dynamic = dynamic_inputs(network)
    ranges = {name: ShapeRange(shapes[name], shapes[name], shapes[name]) for name in dynamic}
    return _profile(builder, dynamic, ranges) if dynamic else None


def dynamic_inputs(network: Any) -> dict[str, tuple[int, ...]]:
    """The network's inputs with a dynamic dimension, and their shapes."""
    return {name: shape for name, shape in _inputs(network).items() if DYNAMIC in shape}


def located(model: Path, call: Callable[[], Any], reason: Callable[[], str]) -> Any:
    """``call()``, whose EngineError begins with the model and ends with what the library said."""
    try:
        return call()
    except EngineError as error:
        message = reason()
        raise EngineError(f"{model}: {error}{f' ({message})' if 'is refused' in str(error) else ''}") from error


def _inputs(network: Any) -> dict[str, tuple[int, ...]]:
    values = [network.get_input(index) for index in range(network.num_inputs)]
    return {value.name: tuple(value.shape) for value in values}


def _profile(builder: Any, dynamic: Mapping[str, tuple[int, ...]], ranges: Mapping[str, ShapeRange]) -> Any:
    profile = builder.create_optimization_profile()
    for name, shape in dynamic.items():
        if name not in ranges:
            low, mid, high = (shape_text(tuple(size if n == DYNAMIC else n for n in shape)) for size in (1, 4, 16))
            raise EngineError(
                f"input '{name}' is {shape_text(shape)}, and no shape range is given for it; give its min, opt and max "
                f"shape, such as {low}, {mid} and {high}"
            )
        shape_range = ranges[name]
        profile.set_shape(name, shape_range.min, shape_range.opt, shape_range.max)
    return profile
