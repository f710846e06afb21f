"""Whether what was trained is better than what stood there before, beyond the chance of the samples that were held out.

The loss of each held-out sample before and after is a pair. If training did nothing, the sign of each difference would
be a coin's: the p-value is the share of random signs with which the mean improves by as much (a randomization test,
Fisher, "The Design of Experiments", 1935). What is judged is the best of several epochs by the same samples, so that
it is the best of all epochs with these signs that must improve by as much (Westfall and Young, "Resampling-Based
Multiple Testing", 1993); not where a metric chose it. Where the teacher alone is learned from, answers that win by the
loss and yet name other classes than it more often, beyond chance as well, are no gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Floats
from engines.contract import Array
from pipeline.training.loop import Learned, Learner, judged, losses_of

NUM_FLIPS = 10_000
MOST_AT_ONCE = 2**22
"""Signs that are held at once."""
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


def accepted(
    learner: Learner, before: Mapping[str, Array], after: Mapping[str, Array], learned: Learned, seed: int
) -> Acceptance:
    """Compare answers on the held-out samples, in their order, before and after; ``learned`` has all epochs'."""
    (loss_before, metric_before), (loss_after, metric_after) = judged(learner, before), judged(learner, after)
    worse = False
    if learner.metric is not None and metric_before is not None and metric_after is not None:
        worse = metric_after < metric_before if learner.metric.higher_is_better else metric_after > metric_before
    num = min(len(next(iter(before.values()))), len(next(iter(after.values()))))
    losses = losses_of(learner, before, num)
    gains = losses - losses_of(learner, after, num)
    chosen_from = [] if metric_after is not None else learned.losses  # A metric chooses the epoch where it is there.
    others = np.array([losses - each[:num] for each in chosen_from]).reshape(-1, num)
    same_before, same_after = (agreements(learner, answers, num) for answers in (before, after))
    return Acceptance(
        loss_before,
        loss_after,
        p_value(gains, seed, others),
        float(same_before.mean()),
        float(same_after.mean()),
        metric_before,
        metric_after,
        worse,
        is_teachers=learner.samples.labels is None,
        p_fewer=p_value(same_before - same_after, seed),
    )


def p_value(gains: Floats, seed: int, others: Floats | None = None) -> float:
    """One-sided: how often random signs of these differences have a mean as large as theirs.

    Args:
        gains: (N,) of what was chosen.
        seed: of the signs.
        others: (E, N) of what it was chosen from; the largest mean of all is compared.
    """
    if not np.isfinite(gains).all() or not gains.any():
        return 1.0
    tried = gains[None] if others is None else np.concatenate([gains[None], others[np.isfinite(others).all(axis=1)]])
    random, as_large, least = np.random.default_rng(seed), 0, gains.sum() * (1 - 1e-12)
    size = max(MOST_AT_ONCE // len(gains), 1)
    for begin in range(0, NUM_FLIPS, size):
        signs = random.choice([-1.0, 1.0], size=(min(size, NUM_FLIPS - begin), len(gains)))
        as_large += int(((signs @ tried.T).max(axis=1) >= least).sum())
    return (as_large + 1) / (NUM_FLIPS + 1)


def agreements(learner: Learner, answers: Mapping[str, Array], num: int) -> Floats:
    """(num,): of each sample the share of classes that are the teacher's, over all heads with classes; NaN of none."""
    same: list[Floats] = []
    for head in learner.heads:
        ours = answers[head.tensor][:num]
        theirs = learner.teacher[head.tensor][learner.samples.held_out[:num]]
        if head.kind == "softmax" and ours.shape == theirs.shape:
            same.append((ours.argmax(head.axis) == theirs.argmax(head.axis)).reshape(num, -1).mean(axis=1))
    return np.asarray(np.mean(same, axis=0)) if same else np.full(num, math.nan)
