"""Whether what was trained is better than what stood there before, beyond the chance of the samples that were held out.

The loss of each held-out sample before and after is a pair. If training did nothing, the sign of each difference would
be a coin's: the p-value is the share of random signs with which the mean improves by as much (a randomization test,
Fisher, "The Design of Experiments", 1935). Where the teacher alone is learned from, answers that win by the loss and
yet name other classes than it more often, beyond chance as well, are no gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats
from engines.contract import Array
from engines.torch_graph.library import load_torch
from pipeline.training.loop import Learner, judged
from pipeline.training.samples import label_tensor, tensors

NUM_FLIPS = 10_000
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Acceptance:
    """Figures of the held-out samples. Agreement is the share of classes that are the teacher's; NaN of no classes."""

    loss_before: float
    loss_after: float
    p_value: float
    agreement_before: float
    agreement_after: float
    metric_before: float | None
    metric_after: float | None
    is_worse_by_metric: bool
    is_teachers: bool
    """The teacher's answers are all that was learned; labels may know better."""
    p_fewer: float
    """As ``p_value``, of naming the teacher's classes less often; 1 of no classes."""

    @property
    def is_better(self) -> bool:
        """Whether what was trained is to be used."""
        fewer = self.is_teachers and self.p_fewer < SIGNIFICANT
        return self.p_value < SIGNIFICANT and not fewer and not self.is_worse_by_metric

    def words(self) -> str:
        """The numbers."""
        parts = [f"loss {self.loss_after:.4g} against {self.loss_before:.4g} before, p = {self.p_value:.2g}"]
        if self.is_teachers and not math.isnan(self.agreement_after):
            parts.append(f"{self.agreement_after:.2%} of the teacher's classes against {self.agreement_before:.2%}")
        if self.metric_after is not None and self.metric_before is not None:
            parts.append(f"metric {self.metric_after:.4g} against {self.metric_before:.4g}")
        return ", ".join(parts)


def accepted(learner: Learner, before: Mapping[str, Array], after: Mapping[str, Array], seed: int) -> Acceptance:
    """Compare answers on the held-out samples, in their order, before training and after."""
    (loss_before, metric_before), (loss_after, metric_after) = judged(learner, before), judged(learner, after)
    worse = False
    if learner.metric is not None and metric_before is not None and metric_after is not None:
        worse = metric_after < metric_before if learner.metric.higher_is_better else metric_after > metric_before
    num = min(len(next(iter(before.values()))), len(next(iter(after.values()))))
    gains = losses_of(learner, before, num) - losses_of(learner, after, num)
    same_before, same_after = (agreements(learner, answers, num) for answers in (before, after))
    return Acceptance(
        loss_before,
        loss_after,
        p_value(gains, seed),
        float(same_before.mean()),
        float(same_after.mean()),
        metric_before,
        metric_after,
        worse,
        is_teachers=learner.samples.labels is None,
        p_fewer=p_value(same_before - same_after, seed),
    )


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


def p_value(gains: Floats, seed: int) -> float:
    """One-sided: how often random signs of these differences have a mean as large as theirs."""
    if not np.isfinite(gains).all() or not gains.any():
        return 1.0
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(NUM_FLIPS, len(gains)))
    as_large = (signs @ gains >= gains.sum() * (1 - 1e-12)).sum()
    return float((as_large + 1) / (NUM_FLIPS + 1))


def agreements(learner: Learner, answers: Mapping[str, Array], num: int) -> Floats:
    """(num,): of each sample the share of classes that are the teacher's, over all heads with classes; NaN of none."""
    same: list[Floats] = []
    for head in learner.heads:
        ours = answers[head.tensor][:num]
        theirs = learner.teacher[head.tensor][learner.samples.held_out[:num]]
        if head.kind == "softmax" and ours.shape == theirs.shape:
            same.append((ours.argmax(head.axis) == theirs.argmax(head.axis)).reshape(num, -1).mean(axis=1))
    return np.asarray(np.mean(same, axis=0)) if same else np.full(num, math.nan)
