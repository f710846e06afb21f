"""The training itself: epochs of Adam, judged on samples that were held out; the best one is kept.

Steps are relative: Adam's rate is multiplied with the root mean square of each weight, and scales are learned by their
logarithm, so that one rate serves networks whose weights differ by orders of magnitude. It falls to 0 along a cosine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibration.arrays import Floats
from engines.contract import Array
from engines.torch_graph.library import load_torch, set_threads
from engines.torch_graph.network import TorchNetwork
from engines.torch_graph.rounding import FakeQuantization, parameters_of
from pipeline.accuracy.metrics import Metric
from pipeline.errors import Unavailable
from pipeline.json_record import finite
from pipeline.machine.progress import Phases
from pipeline.training.adam import Adam
from pipeline.training.checkpoint import EpochCheckpoint
from pipeline.training.curve import Epoch
from pipeline.training.heads import Head, tensors_of
from pipeline.training.losses import Loss
from pipeline.training.options import Training
from pipeline.training.samples import SampleIndices, TrainingSamples, label_tensor, tensors

PIECE = 64
"""Samples that are run at a time where nothing is learned."""
DIVERGED = 4.0
"""Times the loss before training, on held-out samples, from which on a training is given up."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """Which weights are held at zero."""

    of_epoch: Callable[[int], Mapping[str, Any]]
    """Epoch -> weight -> 0 where it is held at zero, else 1, in the weight's shape; called once for each epoch."""
    first_whole: int = 1
    """The first epoch that has all zeros, and can be kept."""


@dataclass(frozen=True)
class Learner:
    """The network that is trained, and all that it is judged by."""

    network: TorchNetwork
    rounding: FakeQuantization | None
    heads: Sequence[Head]
    loss: Loss
    metric: Metric | None
    samples: TrainingSamples
    teacher: Mapping[str, Array]
    """Its answers on all samples, by tensor."""

    def wanted(self) -> tuple[str, ...]:
        """The tensors that are compared, and where a metric judges also the outputs."""
        outputs = self.network.outputs if self.metric is not None else ()
        return tuple(dict.fromkeys((*tensors_of(self.heads), *outputs)))


@dataclass
class Learned:
    """The state that was best so far, and the curve."""

    weights: dict[str, Array] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)
    best: int = 0
    curve: list[Epoch] = field(default_factory=list)
    losses: list[Floats] = field(default_factory=list)
    """(N,) of each held-out sample, of each epoch that could have been kept."""
    stopped: str = ""

    def is_better(self, epoch: Epoch, metric: Metric | None) -> bool:
        """Whether an epoch beats the best so far: by the metric, of equal ones by the loss."""
        best = self.curve[self.best]
        if epoch.held_out_loss is None or best.held_out_loss is None:
            return epoch.held_out_loss is not None
        if metric is None or epoch.metric is None or best.metric is None or epoch.metric == best.metric:
            return epoch.held_out_loss < best.held_out_loss
        return (epoch.metric > best.metric) == metric.higher_is_better


@contextmanager
def device_of(options: Training) -> Iterator[str]:
    """Where torch computes meanwhile.

    Raises:
        Unavailable: on a GPU, and there is none.
    """
    torch = load_torch()
    set_threads(options.num_threads)
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise Unavailable("device is cuda, but torch finds no GPU that it can use here; take auto or cpu")
    generator = torch.get_rng_state()
    torch.manual_seed(options.seed)
    try:
        with torch.device(name):
            yield name
    finally:
        torch.set_rng_state(generator)


def answers_of(
    network: TorchNetwork, samples: TrainingSamples, wanted: Sequence[str], indices: SampleIndices, rounding: Any = None
) -> dict[str, Array]:
    """Tensors of the network on these samples, in their order: nothing is learned."""
    torch = load_torch()
    parts: dict[str, list[Array]] = {name: [] for name in wanted}
    with torch.no_grad():
        for piece in samples.pieces(indices, PIECE):
            if rounding is not None:
                rounding.begin()
            answers = network(tensors(torch, samples.rows(piece)), wanted, rounding)
            for name in wanted:
                parts[name].append(answers[name].cpu().numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def judged(learner: Learner, answers: Mapping[str, Array]) -> tuple[float, float | None]:
    """The loss and the metric of answers on the held-out samples, wherever they come from."""
    torch, samples = load_torch(), learner.samples
    num = len(next(iter(answers.values())))
    judging = samples.held_out[:num]
    expected = {name: array[judging] for name, array in learner.teacher.items()}
    with torch.no_grad():
        labels = label_tensor(torch, samples, judging)
        loss = float(learner.loss(tensors(torch, answers), tensors(torch, expected), labels))
    if learner.metric is None:
        return loss, None
    outputs = {name: answers[name] for name in learner.network.outputs}
    return loss, learner.metric(outputs, samples.labels_of(judging))


def losses_of(learner: Learner, answers: Mapping[str, Array], num: int) -> Floats:
    """(num,): the loss of each of the first held-out samples alone."""
    torch, samples = load_torch(), learner.samples
    losses = np.zeros(num)
    with torch.no_grad():
        for row, sample in enumerate(samples.held_out[:num]):
            labels = label_tensor(torch, samples, samples.held_out[row : row + 1])
            ours = tensors(torch, {name: array[row : row + 1] for name, array in answers.items()})
            expected = tensors(torch, {name: array[sample : sample + 1] for name, array in learner.teacher.items()})
            losses[row] = float(learner.loss(ours, expected, labels))
    return losses


def trained(
    learner: Learner,
    options: Training,
    first: Epoch,
    checkpoint: EpochCheckpoint,
    masks: Masks | None = None,
) -> Learned:
    """Train, and give the best epoch; ``first`` is epoch 0, which what is learned must beat.

    Raises:
        EngineError: a node cannot be computed.
        ConfigError: a user's loss raises.
    """
    weights = list(learner.network.parameters.values())
    rates = [options.step * max(float(each.detach().square().mean().sqrt()), 1e-6) for each in weights]
    scales = list(parameters_of(learner.rounding))
    num_steps = max(1, -(-len(learner.samples.train) // learner.samples.step_size(options.batch_size)))
    optimizer = Adam([*weights, *scales], [*rates, *[options.step] * len(scales)], options.epochs * num_steps)
    learned = Learned(curve=[first])
    state = _State(learner, optimizer, learned, first_kept=1 if masks is None else masks.first_whole)
    is_done = False
    try:
        begin = checkpoint.load(state.restore)
        with Phases("train") as phases:
            for epoch in range(begin + 1, options.epochs + 1):
                mask = masks.of_epoch(epoch) if masks is not None else {}
                progress = _Progress(phases, f"epoch {epoch} of {options.epochs}, {_words(learned)}", num_steps)
                order = np.random.default_rng([options.seed, epoch]).permutation(learner.samples.train)
                loss = _one_epoch(learner, options, optimizer, (order, mask, progress))
                state.keep(epoch, loss)
                if learned.stopped:
                    break
                checkpoint.save(epoch, state.dump)
        is_done = True
    finally:
        checkpoint.close(is_done=is_done)
    return learned


def _words(learned: Learned) -> str:
    return f"held-out loss {learned.curve[-1].held_out_loss or 0.0:.4g}"


@dataclass(frozen=True)
class _Progress:
    phases: Phases
    words: str
    num_steps: int

    def to(self, step: int) -> None:
        self.phases.update((self.words, step, self.num_steps))


def _one_epoch(
    learner: Learner,
    options: Training,
    optimizer: Adam,
    how: tuple[SampleIndices, Mapping[str, Any], _Progress],
) -> float:
    """One pass over the samples; the mean loss of its steps. It ends early when a loss is no number."""
    samples, (shuffled, mask, progress) = learner.samples, how
    losses = []
    size = samples.step_size(options.batch_size)
    _apply(learner.network, mask)
    for step, begin in enumerate(range(0, len(shuffled), size)):
        batch = shuffled[begin : begin + size]
        optimizer.forget_gradients()
        total = 0.0
        for piece in samples.pieces(batch, size):
            loss = _step_loss(learner, piece) * (len(piece) / len(batch))
            loss.backward()
            total += float(loss.detach())
        losses.append(total)
        if not math.isfinite(total):
            break
        optimizer.step()
        if learner.rounding is not None:
            learner.rounding.keep_within()
        _apply(learner.network, mask)
        progress.to(step + 1)
    return float(np.mean(losses))


def _step_loss(learner: Learner, piece: SampleIndices) -> Any:
    torch, samples = load_torch(), learner.samples
    if learner.rounding is not None:
        learner.rounding.begin()
    answers = learner.network(tensors(torch, samples.rows(piece)), tensors_of(learner.heads), learner.rounding)
    expected = tensors(torch, {name: array[piece] for name, array in learner.teacher.items()})
    return learner.loss(answers, expected, label_tensor(torch, samples, piece))


def _apply(network: TorchNetwork, mask: Mapping[str, Any]) -> None:
    """Set to zero what a mask says."""
    with load_torch().no_grad():
        for name, each in mask.items():
            network.parameters[name].mul_(each)


class _State:
    """What a training has reached, to be kept and taken up again."""

    def __init__(self, learner: Learner, optimizer: Adam, learned: Learned, *, first_kept: int) -> None:
        """``first_kept``: the first epoch that can be kept."""
        self._learner, self._optimizer, self._learned, self._first_kept = learner, optimizer, learned, first_kept

    def keep(self, epoch: int, train_loss: float) -> None:
        """Judge an epoch that is over, and keep it if it is the best."""
        learner, learned = self._learner, self._learned
        if math.isfinite(train_loss):
            answers = answers_of(
                learner.network, learner.samples, learner.wanted(), learner.samples.held_out, learner.rounding
            )
            loss, value = judged(learner, answers)
            if epoch >= self._first_kept:
                learned.losses.append(losses_of(learner, answers, len(next(iter(answers.values())))))
        else:
            loss, value = math.nan, None
        entry = Epoch(epoch, finite(train_loss), finite(loss), finite(value))
        if epoch >= self._first_kept and learned.is_better(entry, learner.metric):
            learned.best = epoch
            learned.weights = learner.network.arrays()
            learned.scales = {} if learner.rounding is None else learner.rounding.scales()
        learned.curve.append(entry)
        log.info("epoch %d: held-out loss %.4g, metric %s", epoch, loss, value)
        first, last = learned.curve[0].held_out_loss or 0.0, learned.curve[-2].held_out_loss or 0.0
        if not math.isfinite(loss):
            learned.stopped = f"stopped in epoch {epoch}, where the loss is no number: a lower rate may help"
        elif loss > DIVERGED * max(first, 1e-3) and epoch > 1 and loss > last:
            learned.stopped = f"stopped after epoch {epoch}, where the loss grows ({loss:.4g}): a lower rate may help"

    def dump(self) -> dict[str, Any]:
        """All that is needed to go on, as tensors and plain data."""
        learner, learned = self._learner, self._learned
        scales = {} if learner.rounding is None else learner.rounding.log_scales
        torch = load_torch()
        return {
            "parameters": {name: tensor.detach() for name, tensor in learner.network.parameters.items()},
            "log_scales": {name: tensor.detach() for name, tensor in scales.items()},
            "optimizer": self._optimizer.state(),
            "best": {name: torch.tensor(array) for name, array in learned.weights.items()},
            "best_scales": learned.scales,
            "best_epoch": learned.best,
            "losses": [torch.tensor(array) for array in learned.losses],
            "curve": [[e.epoch, e.train_loss, e.held_out_loss, e.metric] for e in learned.curve],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        learner, learned = self._learner, self._learned
        with load_torch().no_grad():
            for name, tensor in learner.network.parameters.items():
                tensor.copy_(state["parameters"][name])
            for name, tensor in ({} if learner.rounding is None else learner.rounding.log_scales).items():
                tensor.copy_(state["log_scales"][name])
        self._optimizer.restore(state["optimizer"])
        learned.weights = {name: tensor.numpy().copy() for name, tensor in state["best"].items()}
        learned.scales = dict(state["best_scales"])
        learned.best = int(state["best_epoch"])
        learned.losses[:] = [tensor.numpy().copy() for tensor in state["losses"]]
        learned.curve[:] = [Epoch(*entry) for entry in state["curve"]]
