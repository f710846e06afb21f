"""Networks of PyTorch, exported to ONNX, answer as in torch; what cannot be exported is one sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from benchmarks import torch_networks
from calibration.graph.editing import named
from calibration.graph.opset import brought_to, opset_of
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.histogram.histogram import histogram_from_values
from calibration.precision.fp16 import fp16_from_onnx, nodes_beyond_fp16
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span
from engines import backend
from engines.errors import EngineError, Unavailable
from engines.torch_graph.exporter import (
    WrongModule,
    onnx_from_program,
    program_from_module,
    sizes_in_steps,
    traceable,
)
from engines.torch_graph.library import load_torchvision
from engines.torch_graph.program import ProgramCall, load_program, save_program
from pipeline.stages.export import REWRITES


def exported(value: Any) -> tuple[ProgramCall, onnx.ModelProto]:
    """What torch makes of a module, and the ONNX model as `export` writes it."""
    network, _ = traceable(value)
    program = program_from_module(network)
    model = brought_to(onnx_from_program(program, network.axes, 17), 17)
    for rewrite, _ in REWRITES:
        model, _ = rewrite(model)
    return ProgramCall(program), model


@cache
def of_network(network: Callable[[], Any]) -> tuple[ProgramCall, onnx.ModelProto]:
    """One of the networks, which several tests look at."""
    return exported(network())


def feeds(call: ProgramCall, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; of whole numbers 0 and 1, the first of which is 1."""
    random = np.random.default_rng(batch)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for port in call.ports.inputs:
        shape = (batch, *port.spec().shape[1:])
        if port.spec().dtype == "int64":
            arrays[port.name] = random.integers(0, 2, shape)
            arrays[port.name][:, 0] = 1
        else:
            arrays[port.name] = random.standard_normal(shape).astype(np.float32)
    return arrays


@pytest.mark.parametrize("network", torch_networks.NETWORKS, ids=lambda function: function.__name__)
def test_networks_answer_as_in_torch(network: Callable[[], Any], tmp_path: Path) -> None:
    call, model = of_network(network)
    assert opset_of(model) == 17
    assert {dims[0].dim_param for value in model.graph.input if (dims := value.type.tensor_type.shape.dim)} == {"batch"}
    assert [value.name for value in model.graph.input] == [port.name for port in call.ports.inputs]
    assert not [node for node in model.graph.node if node.metadata_props or node.doc_string]
    onnx.save(model, tmp_path / "model.onnx")
    with backend("onnxruntime").load(tmp_path / "model.onnx", num_threads=1) as runner:
        for batch in (1, 4):
            feed = feeds(call, batch)
            expected, answers = call(feed), runner.infer(feed)
            assert expected.keys() == answers.keys()
            for name, array in expected.items():
                wanted = array.astype(np.float32)
                answer = answers[name].astype(np.float32)
                np.testing.assert_allclose(answer, wanted, rtol=1e-4, atol=2e-5 * np.abs(wanted).max())


def spans_of(model: onnx.ModelProto, feed: dict[str, np.ndarray[Any, Any]], folder: Path) -> dict[str, Span]:
    """What calibrating on one batch finds, by min-max."""
    onnx.save(watch_tensors(model, watchable(model)), folder / "watched.onnx")
    with backend("onnxruntime").load(folder / "watched.onnx", num_threads=1) as runner:
        values: dict[str, Any] = {**feed, **runner.infer(feed)}
    seen = {name: histogram_from_values(array, name) for name, array in values.items() if array.dtype == np.float32}
    return {name: Span(each.amax, each.min, each.max, is_finite=not each.num_infinite) for name, each in seen.items()}


@pytest.mark.parametrize("network", torch_networks.NETWORKS, ids=lambda function: function.__name__)
def test_networks_in_reduced_precisions_keep_near(network: Callable[[], Any], tmp_path: Path) -> None:
    call, exported_model = of_network(network)
    model, feed = named(exported_model), feeds(call, 24)
    spans = spans_of(model, feed, tmp_path)
    reduced = {
        target: qdq_from_onnx(model, spans, PlacementOptions(target)).model for target in get_args(PlacementTarget)
    }
    reduced["fp16"] = fp16_from_onnx(model, keep_fp32=set(nodes_beyond_fp16(model, spans)))
    expected = {name: array.astype(np.float64) for name, array in call(feed).items()}
    for name, each in reduced.items():
        onnx.save(each, tmp_path / "reduced.onnx")
        with backend("onnxruntime").load(tmp_path / "reduced.onnx", num_threads=1) as runner:
            answers = runner.infer(feed)
        for output, wanted in expected.items():
            noise = answers[output].astype(np.float64) - wanted
            ratio_db = 10 * np.log10(np.square(wanted).sum() / np.square(noise).sum())
            assert ratio_db > (50 if name == "fp16" else 20), name


def test_pools_are_pools() -> None:
    _, model = of_network(torch_networks.resnet)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("GlobalAveragePool") == 1
    assert "ReduceMean" not in operators
    assert "BatchNormalization" not in operators


class Calls(nn.Module):  # type: ignore[misc]
    """A network that is one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def test_what_is_returned_is_called_by_its_key_or_place() -> None:
    def names(function: Callable[..., Any]) -> list[str]:
        _, model = exported((Calls(function).eval(), torch.ones(2, 3)))
        return [value.name for value in model.graph.output]

    assert names(lambda x: x + 1) == ["output"]
    assert names(lambda x: (x + 1, [x + 2, x + 3])) == ["output_0", "output_1_0", "output_1_1"]
    assert names(lambda x: {"b": x + 1, "x": x * 3, "a": {"c": x + 2}}) == ["b", "x_out", "a_c"]


def test_sizes_that_vary_have_the_names_that_they_were_given() -> None:
    example = {"x": torch.ones(1, 6, 3)}
    network = traceable((Calls(lambda x: x.flip(1) * 2).eval(), example, {"x": {0: "batch", 1: "steps"}}))[0]
    model = onnx_from_program(program_from_module(network), network.axes, 17)
    (value,) = model.graph.output
    assert [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] == ["batch", "steps", 3]


def test_without_sizes_that_vary_the_batch_is_that_of_the_example() -> None:
    network = traceable((Calls(lambda x: x.reshape(1, 6)).eval(), (torch.ones(2, 3),), {}))[0]
    model = onnx_from_program(program_from_module(network), network.axes, 17)
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3]


def test_a_module_in_training_mode_is_set_to_eval() -> None:
    network, notes = traceable((nn.Dropout(0.5), torch.ones(2, 3)))
    assert not network.module.training
    assert notes == ["export: the PyTorch module was in training mode; it was set to eval()"]


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return nn.Linear(3, 2).eval()


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (nn.ReLU().eval(), r"returns a ReLU, \(module, example inputs\) is expected; return for example "),
        ((ONES, ONES), r"returns a tuple of 2, \(module, example inputs\) is expected"),
        ((nn.ReLU().eval(), "x"), r"example input 0 is a str, a torch tensor is expected"),
        ((nn.ReLU().eval(), (ONES, 3)), r"example input 1 is a int, a torch tensor is expected"),
        ((on_meta(), ONES), r"weight 'weight' has no values \(device meta\); load the weights"),
        (
            (nn.Bilinear(3, 3, 2).eval(), (ONES, torch.ones(3, 3))),
            r"have no batch in common \('input1' \(2, 3\), 'input2'",
        ),
        ((nn.ReLU().eval(), ONES, {"y": {0: "batch"}}), r"the third item names 'y', forward takes 'input'; correct it"),
        ((nn.ReLU().eval(), ONES, {"input": {2: "a"}}), r"the third item names axis 2 of 'input', which has 2"),
        ((nn.ReLU().eval(), ONES, ["batch"]), r"the third item is \['batch'\], names of sizes are expected"),
    ],
)
def test_what_is_no_network_is_refused(value: Any, words: str) -> None:
    with pytest.raises(WrongModule, match=words) as refused:
        traceable(value)
    assert "\n" not in str(refused.value)


def draws(x: Any) -> Any:
    return x + torch.rand(3)


def branches(x: Any) -> Any:
    return x + 1 if x.sum() > 0 else x - 1


@pytest.mark.parametrize(
    ("function", "kind", "words"),
    [
        (
            lambda x: x @ torch.ones(4, 4),
            WrongModule,
            r"forward raised RuntimeError on the example inputs \(mat1.*test_",
        ),
        (lambda x: x.reshape(2, 3) + 1, EngineError, r"a size that varies is written into the network \(.*third item"),
        (branches, EngineError, r"what it does depends on values \(.*, at test_exporter.py:\d+: .*; use torch.where"),
        (draws, EngineError, r"answers otherwise than the module on inputs of 'x' \(2, 3\).*draws random numbers"),
        (lambda x: torch.fft.fft(x), EngineError, r"output 'output' is complex64.*torch.view_as_real"),
        (lambda x: {"y": x + 1, "label": "cat"}, EngineError, r"output 'label' is a str, a tensor is expected"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(function: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as refused:
        program_from_module(traceable((Calls(function).eval(), ONES))[0])
    assert "\n" not in str(refused.value)


def test_an_operator_that_onnx_has_not_is_named() -> None:
    program = program_from_module(traceable((Calls(torch.special.i0e).eval(), ONES))[0])
    with pytest.raises(EngineError, match=r"ONNX has no operator for torch's \S*i0e\S*; write the network without it"):
        onnx_from_program(program, {}, 17)


def test_nms_of_torchvision_becomes_onnx_s(tmp_path: Path) -> None:
    try:
        load_torchvision()
    except Unavailable as error:
        pytest.skip(str(error))

    class Head(nn.Module):  # type: ignore[misc]
        """Boxes and scores of a picture, of which those stay that overlap no better one."""

        def forward(self, boxes: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """(k, 4), (k) -> (n, 5)."""
            kept = torch.ops.torchvision.nms(boxes, scores, 0.5)
            return torch.cat([boxes[kept], scores[kept, None]], 1)

    network, _ = traceable((Head().eval(), (torch.rand(20, 4), torch.rand(20)), {}))
    program = program_from_module(network)
    model = brought_to(onnx_from_program(program, network.axes, 17), 17)
    assert "NonMaxSuppression" in [node.op_type for node in model.graph.node]
    save_program(program, tmp_path / "head.pt2")
    onnx.save(model, tmp_path / "model.onnx")
    corners = np.random.default_rng(0).random((20, 2)).astype(np.float32)
    feed = {"boxes": np.hstack([corners, corners + 0.3]), "scores": np.linspace(1, 0, 20, dtype=np.float32)}
    (expected,) = ProgramCall(load_program(tmp_path / "head.pt2"))(feed).values()
    assert 1 < len(expected) < 20
    with backend("onnxruntime").load(tmp_path / "model.onnx", num_threads=1) as runner:
        (answer,) = runner.infer(feed).values()
    np.testing.assert_array_equal(answer, expected)


def sizes_of(model: onnx.ModelProto) -> list[str | int]:
    """Of its input."""
    return [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


SIZES = {"x": {0: "batch", 2: "height", 3: "width"}}


def test_sizes_with_a_least_value_vary_and_keep_their_names(tmp_path: Path) -> None:
    """Of convolutions without padding torch asks for bounds, and proposes ones that are too low."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
    network = Calls(layers).eval()
    _, model = exported((network, torch.zeros(2, 3, 40, 40), SIZES))
    assert sizes_of(model) == ["batch", 3, "height", "width"]
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 33, 50)).astype(np.float32)
    with backend("onnxruntime").load(tmp_path / "model.onnx", num_threads=1) as runner, torch.no_grad():
        answers: list[Any] = [*runner.infer({"x": x}).values()]
        expected: Any = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)


def test_a_pooling_that_rounds_up_is_traced_for_multiples_which_is_said(tmp_path: Path) -> None:
    """As of MTCNN's first network: even and odd sizes pass it in two ways, and torch proposes one of them."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, 2, ceil_mode=True), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 3)
    )
    network = Calls(layers).eval()
    traced, _ = traceable((network, torch.zeros(2, 3, 40, 40), SIZES))
    program = program_from_module(traced)
    model = brought_to(onnx_from_program(program, traced.axes, 17), 17)
    assert sizes_of(model) == ["batch", 3, "height", "width"]
    assert sizes_in_steps(program, traced.axes) == [
        f"export: the size '{name}' has to be a multiple of 2, as torch traced the network for no others"
        for name in ("height", "width")
    ]
    onnx.save(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).standard_normal((1, 3, 34, 50)).astype(np.float32)
    with backend("onnxruntime").load(tmp_path / "model.onnx", num_threads=1) as runner, torch.no_grad():
        answers: list[Any] = [*runner.infer({"x": x}).values()]
        expected: Any = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answers[0], expected, atol=1e-5)
    save_program(program, tmp_path / "net.pt2")
    assert sizes_in_steps(load_program(tmp_path / "net.pt2"), {}) == [
        f"export: the size '{name}' has to be a multiple of 2, as torch traced the network for no others"
        for name in ("x_2", "x_3")
    ]


class Both(nn.Module):  # type: ignore[misc]
    """Two inputs of sizes that have to fit."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num = num

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(N, num * k), (N, k) -> (N, num * k)."""
        return x + torch.cat([y] * self.num, 1)


@pytest.mark.parametrize("num", [1, 2])
def test_sizes_that_follow_from_one_another_vary_together(num: int, tmp_path: Path) -> None:
    network, axes = Both(num).eval(), {"x": {1: "long"}, "y": {1: "short"}}
    traced, _ = traceable((network, (torch.zeros(2, 4 * num), torch.zeros(2, 4)), axes))
    program = program_from_module(traced)
    notes = ["export: the size 'long' has to be 2*short, as torch traced the network for no others"]
    assert sizes_in_steps(program, axes) == (notes if num > 1 else [])
    onnx.save(brought_to(onnx_from_program(program, axes, 17), 17), tmp_path / "model.onnx")
    x, y = (np.ones((2, each), np.float32) for each in (7 * num, 7))
    with backend("onnxruntime").load(tmp_path / "model.onnx", num_threads=1) as runner:
        (answer,) = runner.infer({"x": x, "y": y}).values()
    np.testing.assert_array_equal(answer, x + 1)
