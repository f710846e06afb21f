"""What a training leaves behind: the loss by epoch, and which epoch was kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.json_record import record_from_data, write_json

TRAINING_FILE = "training.json"
MUCH_WORSE = 2.0
"""Times the loss before training: where it is so at the end, steps are too large."""


@dataclass(frozen=True)
class Epoch:
    """One epoch as the held-out samples judge it; epoch 0 is the network before it was trained."""

    epoch: int
    train_loss: float | None
    """Mean over the epoch's steps; None of epoch 0."""
    held_out_loss: float | None
    """None where it is no number, as after steps that were too large."""
    metric: float | None
    """The task's metric on the held-out samples; None without labels."""


@dataclass(frozen=True)
class TrainingRecord:
    """How a training went."""

    loss: str
    metric: str
    """The task's metric that chose the epoch; empty: the loss did."""
    num_train: int
    num_held_out: int
    epochs: tuple[Epoch, ...]
    best: int
    """The epoch that was kept; 0: none was better than what it began with."""
    is_used: bool
    """Whether that epoch is used."""
    decision: str
    """What it was decided by: the deployed file against the one before, on the held-out samples; empty of epoch 0."""
    agreement_db: float | None
    """Signal to noise ratio of the deployed file's answers against those in training, dB; None where it was not
    compared, or they are equal."""
    stopped: str
    """Why it ended before its last epoch; empty if it did not."""
    device: str
    compared: tuple[str, ...]
    """A sentence for each part of the loss: what was compared with what, and why so."""

    def decided(self, is_used: bool, decision: str, agreement_db: float | None = None) -> TrainingRecord:
        """With what the best epoch was decided by."""
        return replace(self, is_used=is_used, decision=decision, agreement_db=agreement_db)

    def write(self, folder: Path) -> None:
        """Write ``training.json``."""
        write_json(self, folder / TRAINING_FILE)

    def sentence(self, verb: str) -> str:
        """What came of it."""
        first, best = self.epochs[0], self.epochs[self.best]
        before = f"epoch 0, before training: {_judged(first, self.metric)}"
        stopped = f"; {self.stopped}" if self.stopped else ""
        if not self.is_used:
            what = "pruned at once" if verb == "prune" else "by post-training quantization"
            why = f"epoch {self.best}: {self.decision}" if self.best else f"{before}{self._after()}"
            return (
                f"{verb}: no epoch was better beyond doubt than the network {what}, which is used "
                f"({self.num_held_out} held-out samples; {why}){stopped}"
            )
        return (
            f"{verb}: of {len(self.epochs) - 1} epochs, epoch {self.best} was the best on {self.num_held_out} held-out "
            f"samples: {self.decision or _judged(best, self.metric)}{stopped}"
        )

    def _after(self) -> str:
        """The loss at the end, where no epoch was kept."""
        first, last = self.epochs[0].held_out_loss, self.epochs[-1].held_out_loss
        if len(self.epochs) == 1 or last is None:
            return ""
        is_much_worse = first is not None and last > MUCH_WORSE * first and not self.stopped
        return f"; at the end {last:.4g}" + "; a lower rate may help" * is_much_worse


def _judged(epoch: Epoch, metric: str) -> str:
    """An epoch's figures."""
    loss = f"loss {epoch.held_out_loss or 0.0:.4g}"
    return loss if epoch.metric is None or not metric else f"{metric} {epoch.metric:.4g}, {loss}"


def training_from_folder(folder: Path) -> TrainingRecord | None:
    """The record of a training that a stage left in its folder; None where nothing was trained."""
    file = folder / TRAINING_FILE
    if not file.is_file():
        return None
    data = json.loads(file.read_text(encoding="utf-8"))
    return record_from_data(data, TrainingRecord, str(file), "train again")
