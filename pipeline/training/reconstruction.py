"""Weights at zero, and what is left made good for them on samples: layer by layer, each on what those before it make.

The network as it was and as it becomes run beside each other, from one layer to the next: what is alive between two is
held, as far as there is room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.graph.external_data import array_of
from calibration.ranges.moments import PairedMoments
from calibration.weights.masks import Pattern
from calibration.weights.one_thread import one_blas_thread
from calibration.weights.pruned_product import ChangedArrays, PrunedProduct
from calibration.weights.segments import Segments
from engines.contract import Array
from pipeline.engine_runner import SIMULATOR, Sessions, as_model_takes, model_ranks, padded
from pipeline.machine.progress import counting

MOST_SAMPLES = 1024
"""Evenly spread."""
MOST_HELD_BYTES = 2**29
"""Of what is alive between two layers on all samples, in both networks."""

SampleTensors: TypeAlias = dict[str, Array]


@dataclass(frozen=True)
class _Pair:
    """SampleTensors of one sample: in the network as it was, and as it becomes."""

    before: SampleTensors
    now: SampleTensors


class Reconstruction:
    """One network that is pruned."""

    def __init__(self, model: onnx.ModelProto, rule: tuple[float, Pattern], num_threads: int) -> None:
        """``rule``: share of zeros in each output channel, and their pattern."""
        self._segments, self._rule, self._num_threads = Segments(model), rule, num_threads
        self._arrays = {tensor.name: tensor for tensor in model.graph.initializer}
        self.changed: ChangedArrays = {}
        """What was pruned so far."""
        self._held: list[_Pair] = []
        self._alive: tuple[str, ...] = ()

    @one_blas_thread()
    def run(self, products: Sequence[PrunedProduct], feeds: Iterable[SampleTensors]) -> int:
        """Prune the weights of products, which are in the order of the graph, on samples as ``feeds_of`` gives them.

        Returns how many samples those were.

        Raises:
            EngineError: a part of the network cannot be run.
        """
        self._alive, self._held = self._segments.inputs, [_Pair(feed, feed) for feed in feeds]
        parts: dict[str, list[PrunedProduct]] = {}
        for product in products:
            parts.setdefault(product.window.tensor, []).append(product)
        with counting("pruning", len(products)) as on_product:
            for tensor, part in parts.items():
                self._prune(tensor, part)
                on_product(sum(product.weight in self.changed for product in products))
        return len(self._held)

    def _prune(self, tensor: str, part: Sequence[PrunedProduct]) -> None:
        """Products that read the same tensor."""
        alive = self._segments.alive(self._segments.index_of(part[0].node))
        moments = {window: PairedMoments(window) for window in dict.fromkeys(product.window for product in part)}
        held: list[_Pair] = []
        is_held = alive is not None
        for pair in self._pairs((tensor,) if alive is None else tuple(dict.fromkeys((*alive, tensor)))):
            for each in moments.values():
                each.add(pair.before[tensor], pair.now[tensor])
            is_held = is_held and _num_bytes(pair) * len(self._held) <= MOST_HELD_BYTES
            if is_held:
                held.append(pair)
        if is_held and alive is not None:
            self._held, self._alive = held, tuple(dict.fromkeys((*alive, tensor)))
        for product in part:
            pairs = moments[product.window].made(centred=bool(product.bias))
            if pairs is not None:
                names = [product.weight, *([product.bias] if product.bias else [])]
                arrays = {name: array_of(self._arrays[name]) for name in names}
                self.changed |= product.pruned(arrays, pairs, self._rule)

    def _pairs(self, wanted: tuple[str, ...]) -> Iterator[_Pair]:
        """These tensors of each sample."""
        changed = [numpy_helper.from_array(array, name) for name, array in self.changed.items()]
        missing = tuple(name for name in wanted if name not in self._alive)
        if not missing:
            yield from self._held
            return
        models = [self._segments.between(self._alive, missing, each) for each in ([], changed)[: 1 + bool(changed)]]
        with ExitStack() as stack:
            sessions = Sessions(stack, SIMULATOR, self._num_threads)
            runs = [sessions.plain(model) for model in models]
            inputs = [[value.name for value in model.graph.input] for model in models]
            for pair in self._held:
                tensors = []
                for side, run, names in zip((pair.before, pair.now), runs, inputs):
                    made = {**side, **run.infer({name: side[name] for name in names})}
                    tensors.append({name: made[name] for name in wanted})
                yield _Pair(tensors[0], tensors[-1])


def feeds_of(samples: Samples, indices: Sequence[int] | None = None) -> Iterator[SampleTensors]:
    """A part of the samples, or of those at these places, each as the model takes it."""
    ranks, size = model_ranks(samples), samples.fixed_batch
    everything = range(samples.num_samples) if indices is None else indices
    places = [int(everything[place]) for place in spread(len(everything), min(len(everything), MOST_SAMPLES))]
    yield from (as_model_takes(padded(feed, size), ranks) for feed in samples.at(places))


def _num_bytes(pair: _Pair) -> int:
    """Arrays that both sides share count once."""
    arrays = {id(array): array for side in (pair.before, pair.now) for array in side.values()}
    return sum(np.asarray(array).nbytes for array in arrays.values())
