"""The two ways to zeros: the weights that stay make good for them (Optimal Brain Surgeon), or nothing else changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx

from calibration.arrays import AnyArray, Floats
from calibration.graph.external_data import array_of
from calibration.graph.watched_outputs import watch_tensors, watchable
from calibration.ranges.means import channel_rms
from calibration.weights.masks import Pattern, Prunable, PrunableWeights, mask_of
from calibration.weights.pruned_product import pruned_products
from engines.torch_graph import library
from engines.torch_graph.network import TorchNetwork
from pipeline.engine_runner import SIMULATOR, Sessions
from pipeline.machine.progress import waiting
from pipeline.spelling import some_of
from pipeline.training.distillation import with_weights
from pipeline.training.loop import Masks
from pipeline.training.reconstruction import Reconstruction, SampleTensors

RAMP = 0.5
"""Share of the epochs in which zeros come."""
NUM_NAMED = 3
"""Nodes in a sentence."""


@dataclass(frozen=True)
class Zeros:
    """How many, and which."""

    share: float
    pattern: Pattern
    num_threads: int
    """Of ONNX Runtime."""


class Pruner(Protocol):
    """A way to zeros, of one network."""

    notes: list[str]
    """Sentences for the user, of the last time that it pruned."""

    def pruned(self, feeds: Iterable[SampleTensors]) -> onnx.ModelProto:
        """The network with all zeros, by these samples."""

    def beginning(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """What training begins with, where it has pruned to this."""

    def masks(self, network: TorchNetwork, num_epochs: int) -> Masks:
        """Which weights are held at zero while what it began with is trained."""


class Surgeon:
    """Weights that stay make good for those that become zero, layer by layer."""

    def __init__(self, model: onnx.ModelProto, weights: PrunableWeights, zeros: Zeros) -> None:
        """``model`` has its constants as initializers."""
        self._model, self._products = pruned_products(model, weights.weights.values())
        self._weights, self._zeros = weights, zeros
        self.notes: list[str] = []

    def pruned(self, feeds: Iterable[SampleTensors]) -> onnx.ModelProto:
        """The network with all zeros, by these samples."""
        zeros = self._zeros
        reconstruction = Reconstruction(self._model, (zeros.share, zeros.pattern), zeros.num_threads)
        num_samples = reconstruction.run(self._products, feeds)
        changed = dict(reconstruction.changed)
        others = {name: how for name, how in self._weights.weights.items() if name not in changed}
        self.notes = [
            f"method obs: weights of {len(changed.keys() & self._weights.weights)} of {len(self._weights.weights)} "
            f"convolutions and matrix products make good for zeros, on {num_samples} samples"
        ]
        if others:
            names = some_of([f"'{how.node}'" for how in others.values()], NUM_NAMED)
            self.notes.append(
                f"{names}: zeros are those with the least |weight|, and nothing makes good for them: the weight "
                "has other readers, the product is scaled or transposed, or its data is not finite"
            )
        return with_weights(self._model, changed | _by_size(self._model, others, {}, zeros))

    def beginning(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """That itself."""
        return pruned

    def masks(self, network: TorchNetwork, num_epochs: int) -> Masks:
        """All zeros, from the beginning."""
        torch = library.load_torch()
        names = [name for name in self._weights.weights if name in network.parameters]
        arrays = network.arrays()
        masks = {name: torch.tensor(arrays[name] != 0, dtype=torch.float32) for name in names}
        return Masks(lambda epoch: masks if epoch <= num_epochs else {})


class Wanda:
    """Weights with the least |weight| times rms of their input become zero, and nothing else changes."""

    def __init__(self, model: onnx.ModelProto, weights: PrunableWeights, zeros: Zeros) -> None:
        """``model`` has its constants as initializers."""
        self._model, self._weights, self._zeros = model, weights, zeros
        self._rms: dict[str, Floats] = {}
        self.notes: list[str] = []

    def pruned(self, feeds: Iterable[SampleTensors]) -> onnx.ModelProto:
        """The network with all zeros, by these samples."""
        self._measure(feeds)
        return with_weights(self._model, _by_size(self._model, self._weights.weights, self._rms, self._zeros))

    def beginning(self, pruned: onnx.ModelProto) -> onnx.ModelProto:
        """The dense network: zeros come meanwhile."""
        return self._model

    def _measure(self, feeds: Iterable[SampleTensors]) -> None:
        """The root mean square of each input channel of the products."""
        possible = set(watchable(self._model))
        axes = {each.data: each.data_axis for each in self._weights.weights.values() if each.data in possible}
        inputs = {value.name for value in self._model.graph.input}
        watched = watch_tensors(self._model, [name for name in axes if name not in inputs])
        with waiting("inputs of products"), ExitStack() as stack:
            run = Sessions(stack, SIMULATOR, self._zeros.num_threads).plain(watched)
            rms = channel_rms(run.infer, feeds, axes)
        self._rms = {name: np.asarray(values) for name, values in rms.items()}

    def masks(self, network: TorchNetwork, num_epochs: int) -> Masks:
        """By the weights as they are, along a cubic curve until ``RAMP`` of the epochs; then they stay as they are."""
        torch, zeros = library.load_torch(), self._zeros
        last = max(1, math.ceil(num_epochs * RAMP))
        final: dict[str, Any] = {}

        def masks(epoch: int) -> Mapping[str, Any]:
            if epoch > last and final:
                return final
            share = zeros.share * (1 - (1 - min(1.0, epoch / last)) ** 3)
            pattern = zeros.pattern if epoch >= last else "any"  # 2:4 comes at the end, before it any zeros do.
            arrays = network.arrays()
            made = {
                name: torch.tensor(
                    mask_of(arrays[name], how, self._rms.get(how.data), share, pattern), dtype=torch.float32
                )
                for name, how in self._weights.weights.items()
                if name in arrays
            }
            if epoch >= last:
                final.update(made)
            return made

        return Masks(masks, first_whole=last)


def _by_size(
    model: onnx.ModelProto, weights: Mapping[str, Prunable], rms: Mapping[str, Floats], zeros: Zeros
) -> dict[str, Any]:
    """These weights with zeros where |weight| times rms is least."""
    arrays: dict[str, AnyArray] = {
        tensor.name: array_of(tensor) for tensor in model.graph.initializer if tensor.name in weights
    }
    return {
        name: array * mask_of(array, weights[name], rms.get(weights[name].data), zeros.share, zeros.pattern)
        for name, array in arrays.items()
    }


def zeros_sentence(model: onnx.ModelProto, weights: PrunableWeights) -> str:
    """How many zeros there are."""
    sizes = [
        (np.count_nonzero(array == 0), array.size)
        for tensor in model.graph.initializer
        if tensor.name in weights.weights
        for array in [array_of(tensor)]
    ]
    floats = sum(
        math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    )
    num_zeros = sum(zeros for zeros, _ in sizes)
    return (
        f"prune: {num_zeros:,} of {floats:,} weights are zero ({num_zeros / floats:.0%}), in {len(sizes)} "
        "convolutions and matrix products; the size of the file and the latency on a CPU stay as they were, "
        "compressed it is smaller"
    )
