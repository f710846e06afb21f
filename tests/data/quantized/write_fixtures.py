"""Writes the files in this folder, with the tools that quantized them: networks trained with quantization (QAT).

    python tests/data/quantized/write_fixtures.py fx       torch 2.13, its FX graphs and its old exporter
    python tests/data/quantized/write_fixtures.py pt2e     torch 2.13 and torchao 0.18, exported with dynamo
    python tests/data/quantized/write_fixtures.py tfmot    tensorflow-model-optimization 0.8.1 on tf_keras, tf2onnx 1.17

Beside each NAME.onnx, NAME.npz has inputs (x) and what the tool itself answers to them (y). Each network is trained for
a few steps on drawn data, so that its scales come from training. The tests need none of these tools.
"""

# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
NUM_STEPS = 30


def samples(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(3).standard_normal((16, *shape)).astype(np.float32)


def save(name: str, x: Any, y: Any) -> None:
    np.savez_compressed(HERE / f"{name}.npz", x=x, y=np.asarray(y, np.float32))
    print(name, (HERE / f"{name}.onnx").stat().st_size, "bytes")


def torch_network() -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Network(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
            self.second, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Any) -> Any:
            x = torch.relu(self.norm(self.first(x)))
            x = x + torch.relu(self.second(x))
            return self.last(x.mean((2, 3)))

    return Network()


def train(module: Any, x: Any) -> None:
    import torch

    target = torch.tanh(x.mean((2, 3)) @ torch.ones(3, 5))
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        ((module(x) - target) ** 2).mean().backward()
        optimizer.step()


def write_fx() -> None:
    """Activations UINT8 with zero point 128, weights INT8 by channel, which is what TensorRT takes."""
    import torch
    from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, QConfig, QConfigMapping
    from torch.ao.quantization.fake_quantize import default_per_channel_weight_fake_quant
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

    x = torch.tensor(samples((3, 8, 8)))
    activation = FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, dtype=torch.quint8, qscheme=torch.per_tensor_symmetric, reduce_range=False
    )
    mapping = QConfigMapping().set_global(QConfig(activation, default_per_channel_weight_fake_quant))
    prepared = prepare_qat_fx(torch_network().train(), mapping, (x,))
    train(prepared, x)
    converted = convert_fx(prepared.eval())
    torch.onnx.export(
        converted, (x,), str(HERE / "fx_qat.onnx"), opset_version=17, dynamo=False, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
    )  # fmt: skip
    save("fx_qat", x.numpy(), converted(x).detach().numpy())


def write_pt2e() -> None:
    """INT8 with zero point 0 throughout, weights by channel."""
    import torch
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        allow_exported_model_train_eval,
        move_exported_model_to_eval,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    def spec(observer: Any, scheme: Any, axis: int | None = None) -> Any:
        limits = {"dtype": torch.int8, "quant_min": -127, "quant_max": 127, "qscheme": scheme}
        quantize = FakeQuantize.with_args(observer=observer, **limits)
        return QuantizationSpec(observer_or_fake_quant_ctr=quantize, ch_axis=axis, is_dynamic=False, **limits)

    class Symmetric(Quantizer):  # type: ignore[misc]
        def annotate(self, model: Any) -> Any:
            data = spec(MovingAverageMinMaxObserver, torch.per_tensor_symmetric)
            weight = spec(MovingAveragePerChannelMinMaxObserver, torch.per_channel_symmetric, 0)
            for node in model.graph.nodes:
                if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map={node.args[0]: data, node.args[1]: weight}, _annotated=True
                    )
            return model

        def validate(self, model: Any) -> None:
            pass

    x = torch.tensor(samples((3, 8, 8)))
    batch = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(torch_network().eval(), (x,), dynamic_shapes=batch).module()
    prepared = prepare_qat_pt2e(exported, Symmetric())
    allow_exported_model_train_eval(prepared)
    train(prepared, x)
    move_exported_model_to_eval(prepared)
    converted = convert_pt2e(prepared)
    torch.onnx.export(
        converted, (x,), str(HERE / "pt2e_qat.onnx"), dynamo=True, opset_version=18, input_names=["x"],
        output_names=["y"], external_data=False, dynamic_shapes=batch,
    )  # fmt: skip
    save("pt2e_qat", x.numpy(), converted(x).detach().numpy())


def write_tfmot() -> None:
    """Activations and weights symmetric; exported as a SavedModel, which tf2onnx converts as `trtforge export` does.

    The input's quantizer, which TFMOT adds by itself, is asymmetric: it holds all values, so these reach as far below 0
    as above.
    """
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow as tf
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    quantizers = tfmot.quantization.keras.quantizers

    class Symmetric(tfmot.quantization.keras.QuantizeConfig):  # type: ignore[misc]
        weight = quantizers.LastValueQuantizer(num_bits=8, per_axis=False, symmetric=True, narrow_range=True)
        data = quantizers.MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=True, narrow_range=False)

        def get_weights_and_quantizers(self, layer: Any) -> Any:
            return [(layer.kernel, self.weight)]

        def get_activations_and_quantizers(self, layer: Any) -> Any:
            return [(layer.activation, self.data)]

        def set_quantize_weights(self, layer: Any, weights: Any) -> None:
            layer.kernel = weights[0]

        def set_quantize_activations(self, layer: Any, activations: Any) -> None:
            layer.activation = activations[0]

        def get_output_quantizers(self, layer: Any) -> Any:
            return []

        def get_config(self) -> Any:
            return {}

    keras.utils.set_random_seed(0)
    annotate = tfmot.quantization.keras.quantize_annotate_layer
    given = keras.Input((8, 8, 3))
    y = annotate(keras.layers.Conv2D(8, 3, padding="same", activation="relu"), Symmetric())(given)
    y = annotate(keras.layers.Conv2D(8, 3, strides=2, activation="relu"), Symmetric())(y)
    y = annotate(keras.layers.Dense(5), Symmetric())(keras.layers.Flatten()(y))
    with tfmot.quantization.keras.quantize_scope({"Symmetric": Symmetric}):
        model = tfmot.quantization.keras.quantize_apply(keras.Model(given, y))
    x = samples((8, 8, 3)).clip(-3, 3)
    assert (x.min(), x.max()) == (-3, 3)
    model.compile("sgd", "mse")
    model.fit(x, np.tanh(x.mean((1, 2)) @ np.ones((3, 5))), epochs=NUM_STEPS, verbose=0)
    serve = tf.function(lambda x: {"y": model(x, training=False)}, [tf.TensorSpec([None, 8, 8, 3], tf.float32, "x")])
    with tempfile.TemporaryDirectory() as folder:
        module = tf.Module()
        module.model = model
        tf.saved_model.save(module, folder, signatures={"serving_default": serve})
        command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", folder, "--opset", "17"]
        subprocess.run([*command, "--output", HERE / "tfmot_qat.onnx"], check=True, capture_output=True)
    save("tfmot_qat", x, model(x, training=False).numpy())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"fx": write_fx, "pt2e": write_pt2e, "tfmot": write_tfmot}[sys.argv[1]]()
