"""What a quantized model answers on evaluation samples, run as a candidate says, and how much of it is in INT8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from benchmarks import networks
from benchmarks.candidates import Candidate
from engines.backends import onnxruntime
from engines.contract import BuildOptions
from engines.onnx_model import facts

Floats = npt.NDArray[np.float32]
MOST_VALUES = 2_000_000
"""Of the input, in a batch."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered on all evaluation samples."""

    guesses: npt.NDArray[np.int64]
    """(N,) or (N, T): arg max of the output."""
    logits: Floats
    """(N, C) or (N, T, C): what goes into the last Softmax, or the output if there is none."""


def answers(candidate: Candidate, samples: Floats, work: Path) -> Answers:
    """Run a model on all samples: (N, ...) float32, preprocessed."""
    if candidate.run == "tflite":
        return tflite_answers(candidate.path, samples)
    model = onnx.load(candidate.path)
    logits, output = logits_of(model), model.graph.output[0].name
    if logits != output:
        model.graph.output.append(onnx.ValueInfoProto(name=logits))  # Of whatever type it is.
    path = work / "run.onnx"
    onnx.save(model, path)
    load = onnxruntime.load if candidate.run == "kernels" else onnxruntime.load_simulation
    name = model.graph.input[0].name
    size = max(1, min(100, MOST_VALUES // samples[0].size))
    guesses, kept = [], []
    with load(path, num_threads=1) as runner:
        for row in range(0, len(samples), size):
            found = runner.infer({name: samples[row : row + size]})
            guesses.append(found[output].argmax(axis=-1))
            kept.append(found[logits].astype(np.float32))
    return Answers(np.concatenate(guesses), np.concatenate(kept))


def logits_of(model: onnx.ModelProto) -> str:
    """The tensor that the last Softmax reads, whatever Q/DQ pairs stand behind it; the output if there is none."""
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers[model.graph.output[0].name]
    while node.op_type in ("QuantizeLinear", "DequantizeLinear", "Identity", "Cast"):
        node = producers[node.input[0]]
    return str(node.input[0] if node.op_type == "Softmax" else model.graph.output[0].name)


def interpreter_of(path: Path) -> Any:
    """TFLite's, with its own integer kernels, which keeps every tensor."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(path), experimental_preserve_all_tensors=True, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    return interpreter


def tflite_answers(path: Path, samples: Floats) -> Answers:
    """Run a full-integer TFLite model, a sample at a time."""
    interpreter = interpreter_of(path)
    given, asked = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    softmax = [op["inputs"][0] for op in interpreter._get_ops_details() if op["op_name"] == "SOFTMAX"]
    logits = next(t for t in interpreter.get_tensor_details() if t["index"] == (softmax or [asked["index"]])[-1])
    codes = networks.codes_of(samples, given)
    outputs, kept = [], []
    for code in codes:
        interpreter.set_tensor(given["index"], code[None].reshape(given["shape"]))
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(asked["index"]).reshape(-1))
        kept.append(interpreter.get_tensor(logits["index"]).reshape(-1))
    scale, zero_point = logits["quantization"]
    return Answers(np.array(outputs).argmax(axis=1), (np.array(kept, np.float32) - zero_point) * np.float32(scale))


def num_int8(candidate: Candidate, work: Path) -> str:
    """How many of the convolutions and matrix products are in 8 bits."""
    if candidate.run == "tflite":
        interpreter = interpreter_of(candidate.path)
        dtypes = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        products = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL")
        all_ops = [op for op in interpreter._get_ops_details() if op["op_name"] in products]
        found = sum(all(dtypes[index] == np.int8 for index in op["inputs"][:2]) for op in all_ops)
        return f"{found}/{len(all_ops)}"
    of_all = facts(candidate.path)
    if candidate.run == "simulation":
        return f"{of_all.num_quantized}/{of_all.num_quantizable}"
    built = onnxruntime.build(candidate.path, work / "engine.onnx", BuildOptions(precision="int8"))
    return f"{built.num_int8}/{of_all.num_quantizable}"


def sqnrs_db(reference: Floats, found: Floats) -> npt.NDArray[np.float64]:
    """Of each sample 10 log10 (|x|^2 / |x - y|^2): (N, ...) and (N, ...) -> (N,)."""
    ratios = []
    for exact, rounded in zip(reference, found):
        noise = np.square(exact.astype(np.float64) - rounded).sum()
        ratios.append(10 * np.log10(np.square(exact.astype(np.float64)).sum() / max(noise, np.finfo(np.float32).tiny)))
    return np.array(ratios)
