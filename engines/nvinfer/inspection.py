"""Asks a built engine for its layers: needs a GPU that it runs on, and its process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from engines.contract import BuildOptions, LayerFacts
from engines.layers import layers_from_inspector, num_nodes_in, summary
from engines.onnx_model import OnnxModelFacts


@dataclass(frozen=True)
class Inspection:
    """What is known of a built engine's layers."""

    num_int8: int
    """Convolutions and matrix products in integer arithmetic; -1: cannot tell."""
    notes: tuple[str, ...] = ()
    layers: tuple[LayerFacts, ...] = ()
    source: str = ""
    """Who said so."""


def inspection_from(layers: tuple[LayerFacts, ...], model_facts: OnnxModelFacts, source: str) -> Inspection:
    """What a record says of these layers."""
    if not any(layer.precision for layer in layers):
        return Inspection(
            -1 if model_facts.has_quantize else 0, (f"{source} does not report precisions.",), layers, source
        )
    return Inspection(num_nodes_in(layers, "INT8", model_facts.product_names), (summary(layers),), layers, source)


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
        return inspection_from(layers_from_inspector(text, model_facts.node_names), model_facts, "EngineInspector")
    except Exception as error:  # noqa: BLE001  # Whatever it is, there is an engine.
        return Inspection(-1, (f"Its layers are not known ({type(error).__name__}: {error}).",))
