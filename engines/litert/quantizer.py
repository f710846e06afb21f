"""Writes a precision into a float `.tflite` file by ai-edge-quantizer, with ranges that are handed in.

Its own calibration is not used: it is a moving average, which depends on the order of the samples. Nor is TensorFlow's
converter, which takes no ranges, and whose own are wider than what was seen: of two tensors that are added, one gets
the range of the sum as well (the sum is written in its place, and then it is looked at).
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import EngineError, Unavailable
from engines.precision import Precision
from engines.quiet import quiet

INSTALL = "pip install 'trtforge[litert]'"
DISTRIBUTION = "ai-edge-quantizer"


CLIPPING = "OCTAV"
"""Cuts the largest weights of 4 bits where least is lost then, by its name in the library: of three networks it kept
90.3, 57.6 and 90.4 % right, with the largest as they are 88.9, 47.7 and 89.2 %, and MSE 90.8, 33.7 and 90.3 %."""
IN_4_BITS = ("CONV_2D", "FULLY_CONNECTED")
"""The operators of which the library writes weights of 4 bits for every kind of data."""
STORED = "DEPTHWISE_CONV_2D"
"""The operator of which ``dynamic`` keeps weights alone in INT8: XNNPACK has no kernel of it for data that is rounded
at each run, and LiteRT's own takes far longer than XNNPACK's in FP32. It has one of each other product."""


@dataclass(frozen=True)
class TfliteFormat:
    """What is written."""

    precision: Precision
    per_channel: bool = True
    """Whether weights have a scale for each channel, and not one for all."""
    integer_io: bool = False
    """Whether inputs and outputs are integers as well, where the precision is."""
    weight_bits: int = 8
    """Of integer weights: 8, or 4 for the operators in ``IN_4_BITS``, with 8 for the others."""
    per_dense_tensor: bool = False
    """Whether weights of dense layers have one scale all the same."""
    in_float: tuple[str, ...] = ()
    """Operators that stay as they are, each by the first tensor that it makes."""
    rounds_all_data: bool = False
    """Whether ``dynamic`` rounds the data of ``STORED`` too, as files of others do."""


def why_not_quantize() -> str:
    """Empty if ai-edge-quantizer is installed."""
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        return f"litert: ai-edge-quantizer is not installed, which writes its precisions; {INSTALL}"
    return ""


def quantized(model: Path, wanted: TfliteFormat, ranges: Mapping[str, tuple[float, float]]) -> bytes:
    """The bytes of the file in that precision.

    Args:
        model: the float `.tflite` file.
        wanted: the precision, and how it is written.
        ranges: tensor -> its least and largest value, 0 among them; of every floating-point tensor that is computed or
            fed. Read where scales of activations are fixed, and else empty.

    Raises:
        Unavailable: ai-edge-quantizer is not installed.
        EngineError: it refuses the file.
    """
    if reason := why_not_quantize():
        raise Unavailable(reason)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It keeps all values of an interpreter that it runs nothing on, and warns.
        from ai_edge_quantizer import quantizer

        values = {
            name: {"min": np.full(1, low, np.float32), "max": np.full(1, high, np.float32)}
            for name, (low, high) in ranges.items()
        }
        try:
            result = quantizer.Quantizer(str(model), _recipe(wanted)).quantize(
                values or None, enable_progress_bar=False, enable_progress_report=False
            )
        except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
            words = " ".join(str(error).split())[:400]
            raise EngineError(
                f"{model}: ai-edge-quantizer does not write {wanted.precision.name} ({words}); take another precision"
            ) from error
    return bytes(result.quantized_model)


def _recipe(wanted: TfliteFormat) -> Any:
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    recipe, precision = recipe_manager.RecipeManager(), wanted.precision
    everything = {"regex": ".*", "operation_name": qtyping.TFLOperationName.ALL_SUPPORTED}
    granularity = qtyping.QuantGranularity.CHANNELWISE if wanted.per_channel else qtyping.QuantGranularity.TENSORWISE
    in_4_bits = [qtyping.TFLOperationName[name] for name in IN_4_BITS if wanted.weight_bits != precision.weight_bits]
    if not precision.is_integer:
        half = algorithm_manager.AlgorithmName.FLOAT_CASTING
        recipe.add_weight_only_config(**everything, num_bits=precision.weight_bits, algorithm_key=half)
    elif precision.is_dynamic:
        recipe.add_dynamic_config(**everything, num_bits=precision.weight_bits, granularity=granularity)
        for name in in_4_bits:
            recipe.add_dynamic_config(
                ".*", name, num_bits=wanted.weight_bits, granularity=granularity, algorithm_key=CLIPPING
            )
        if not wanted.rounds_all_data:
            stored = qtyping.TFLOperationName[STORED]
            recipe.add_weight_only_config(".*", stored, num_bits=precision.weight_bits, granularity=granularity)
    else:
        recipe.add_static_config(
            **everything,
            activation_num_bits=precision.activation_bits,
            weight_num_bits=precision.weight_bits,
            weight_granularity=granularity,
        )
        for name in in_4_bits:
            recipe.add_static_config(
                ".*",
                name,
                activation_num_bits=precision.activation_bits,
                weight_num_bits=wanted.weight_bits,
                weight_granularity=granularity,
                algorithm_key=CLIPPING,
            )
        if wanted.per_dense_tensor:
            recipe.add_static_config(
                regex=".*",
                operation_name=qtyping.TFLOperationName.FULLY_CONNECTED,
                activation_num_bits=precision.activation_bits,
                weight_num_bits=precision.weight_bits,
                weight_granularity=qtyping.QuantGranularity.TENSORWISE,
            )
        if not wanted.integer_io:
            for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
                recipe.add_quantization_config(".*", end, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    for name in wanted.in_float:
        recipe.add_quantization_config(
            f"^{re.escape(name)};",
            everything["operation_name"],
            algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE,
        )
    return recipe.get_quantization_recipe()
