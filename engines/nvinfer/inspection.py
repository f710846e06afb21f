"""Asks a built engine for its layers: needs a GPU that it runs on, and its process."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engines.contract import BuildOptions, LayerFacts
from engines.layers import layers_from_inspector, summary
from engines.onnx_model import OnnxModelFacts


@dataclass(frozen=True)
class Inspection:
    """What is known of a built engine's layers."""

    num_int8: int
    """Convolutions and matrix products in integer arithmetic, in the first profile; -1: cannot tell."""
    notes: tuple[str, ...] = ()
    layers: tuple[LayerFacts, ...] = ()
    source: str = ""
    """Who said so."""


def inspection_from(
    layers: tuple[LayerFacts, ...], model_facts: OnnxModelFacts, source: str, *, is_native: bool = False
) -> Inspection:
    """What a record says of these layers. ``is_native``: whether every product may be INT8, not the quantized alone."""
    if not any(layer.precision for layer in layers):
        num_int8 = -1 if model_facts.has_quantize or is_native else 0
        return Inspection(num_int8, (f"{source} does not report precisions.",), layers, source)
    may_be_integer = model_facts.product_names if is_native else model_facts.quantized_names
    num_int8, notes = integer_products(layers, model_facts, may_be_integer, source)
    return Inspection(num_int8, (summary(layers), *notes), layers, source)


def integer_products(
    layers: Collection[LayerFacts], model_facts: OnnxModelFacts, may_be_integer: Sequence[str], source: str
) -> tuple[int, tuple[str, ...]]:
    """How many of the model's products the layers of the first profile compute in integers; sentences for the record.

    -1 unless each that may be is in a layer whose precision is told.
    """
    products = model_facts.product_names
    profiles = sorted({each.profile for each in layers} | {0})
    nums = {profile: sum(map(_nodes_in(layers, profile, "INT8").__contains__, products)) for profile in profiles}
    listed = _nodes_in(layers, 0)
    untold = [name for name in may_be_integer if name not in listed]
    notes = [f"In optimization profile {profile}, {num} do." for profile, num in nums.items() if num != nums[0]]
    if untold or nums[0] < len(may_be_integer) or notes:
        but = f", which does not tell of {len(untold)}, such as '{untold[0]}'" if untold else ""
        notes.insert(
            0,
            f"{nums[0]} of {len(may_be_integer)} quantized convolutions and matrix products multiply integers, going "
            f"by {source}{but}.",
        )
    return -1 if untold else nums[0], tuple(notes)


def _nodes_in(layers: Iterable[LayerFacts], profile: int, precision: str = "") -> set[str]:
    """The nodes that are in such a layer of the profile; of any precision that is told, if none is given."""
    return {
        node
        for each in layers
        if each.profile == profile and each.precision and precision in ("", each.precision)
        for node in each.nodes
    }


def inspected(trt: Any, log: Any, plan: bytes, model_facts: OnnxModelFacts, options: BuildOptions) -> Inspection:
    """Deserialize the plan and ask its inspector. What goes wrong in it is a note: the engine is built all the same."""
    if options.weights == "stripped":
        return Inspection(-1, ("It has no weights, so that its layers are not known before it is refitted.",))
    try:
        runtime = trt.Runtime(log)
        if options.version_compatible:
            runtime.engine_host_code_allowed = True
        if options.dla_core >= 0:
            runtime.DLA_core = options.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return Inspection(-1, ("Its layers are not known: the engine did not load after it was built.",))
        inspector = engine.create_engine_inspector()
        context = engine.create_execution_context()
        if context is not None:  # Without shapes the types of tensors are "N/A due to dynamic shapes".
            for name, shape in options.shapes.items():
                context.set_input_shape(name, shape.opt)
            inspector.execution_context = context
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        layers = layers_from_inspector(text, model_facts.node_names)
        return inspection_from(layers, model_facts, "EngineInspector", is_native=options.native is not None)
    except Exception as error:  # noqa: BLE001  # Whatever it is, there is an engine.
        return Inspection(-1, (f"Its layers are not known ({type(error).__name__}: {error}).",))
