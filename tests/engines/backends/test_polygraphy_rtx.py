"""Polygraphy on TensorRT for RTX: it takes our models, builds of them what we build, and reads our plans.

Polygraphy reads POLYGRAPHY_USE_TENSORRT_RTX when it is imported, so each call is a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.backends import tensorrt_rtx
from engines.contract import BuildOptions, ShapeRange
from engines.cuda import device
from engines.nvinfer.plan_header import header_of
from engines.nvinfer.rtx_plan import plan_products

if tensorrt_rtx.why_not_build() or importlib.util.find_spec("polygraphy") is None:
    pytest.skip(tensorrt_rtx.why_not_build() or "polygraphy is not installed", allow_module_level=True)

SaveConv = Callable[[int], Path]
CONV = {"x": ShapeRange((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}
SHAPES = [f"--trt-{name}-shapes=x:[{number},16,8,8]" for name, number in (("min", 1), ("opt", 2), ("max", 4))]


def python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Python in that folder, for Polygraphy leaves files there, with TensorRT for RTX in TensorRT's place."""
    environment = os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def polygraphy(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(folder, "-c", "import sys; from polygraphy.tools import main; sys.exit(main())", *arguments)


def test_it_finds_nothing_in_our_int8_model_that_is_not_supported(
    save_quantized_conv: SaveConv, tmp_path: Path
) -> None:
    done = polygraphy(tmp_path, "inspect", "capability", save_quantized_conv(1))
    assert done.returncode == 0, done.stderr
    assert "Graph is fully supported by TensorRT" in done.stdout


def test_it_builds_the_products_that_we_build(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    model, ours, theirs = save_quantized_conv(1), tmp_path / "ours", tmp_path / "theirs"
    done = polygraphy(
        tmp_path, "convert", model, "--convert-to", "trt", "--compute-capabilities", "8.9", *SHAPES, "-o", theirs
    )
    assert done.returncode == 0, done.stderr
    tensorrt_rtx.build(model, ours, BuildOptions("int8", CONV, compute_capabilities=("8.9",)))
    assert plan_products(theirs.read_bytes()) == plan_products(ours.read_bytes())
    assert [(layer.name, layer.precision) for layer in plan_products(ours.read_bytes())] == [("conv", "INT8")]
    assert header_of(theirs) == header_of(ours)


LAYERS = """
import json, sys
from polygraphy.backend.trt import NetworkFromOnnxPath
builder, network, parser = NetworkFromOnnxPath(sys.argv[1])()
layers = [network.get_layer(index) for index in range(network.num_layers)]
print(json.dumps([[layer.name, layer.type.name, layer.get_output(0).dtype.name] for layer in layers]))
"""


def test_its_network_has_the_layers_and_types_that_the_file_says(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    done = python(tmp_path, "-c", LAYERS, save_quantized_conv(1))
    assert done.returncode == 0, done.stderr
    layers = [layer for layer in json.loads(done.stdout.splitlines()[-1]) if layer[1] != "CONSTANT"]
    assert layers == [
        ["x_Q", "QUANTIZE", "INT8"],
        ["x_DQ", "DEQUANTIZE", "FLOAT"],
        ["w_Q", "QUANTIZE", "INT8"],
        ["w_DQ", "DEQUANTIZE", "FLOAT"],
        ["conv", "CONVOLUTION", "FLOAT"],
        ["relu", "ACTIVATION", "FLOAT"],
    ]


def test_it_loads_our_plan_as_far_as_that_goes_without_a_driver(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    if not device.why_no_gpu():
        pytest.skip("there is a GPU here: scripts/gpu_check holds Polygraphy's runner to ours")
    tensorrt_rtx.build(save_quantized_conv(1), tmp_path / "engine", BuildOptions("int8", CONV))
    done = polygraphy(tmp_path, "inspect", "model", tmp_path / "engine", "--model-type", "engine")
    assert done.returncode != 0
    assert "cudaError 35: CUDA driver version is insufficient" in done.stdout + done.stderr
