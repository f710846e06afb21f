"""What a training says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.training.curve import Epoch, TrainingRecord

RECORD = TrainingRecord("teacher", "", 48, 16, (Epoch(0, None, 0.25, None),), 0, False, "", None, "", "cpu", ())


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ((), "epoch 0, before training: loss 0.25)"),
        ((0.75, 0.375), "epoch 0, before training: loss 0.25; at the end 0.375)"),
        ((0.125, 0.75), "epoch 0, before training: loss 0.25; at the end 0.75; a lower rate may help)"),
        ((None,), "epoch 0, before training: loss 0.25)"),
    ],
)
def test_where_no_epoch_was_kept_it_is_said_how_it_ended(losses: tuple[float | None, ...], words: str) -> None:
    epochs = [Epoch(number + 1, 1.0, loss, None) for number, loss in enumerate(losses)]
    assert replace(RECORD, epochs=(*RECORD.epochs, *epochs)).sentence("tune").endswith(f"(16 held-out samples; {words}")


def test_a_training_that_was_stopped_has_its_hint_already() -> None:
    stopped = replace(RECORD, epochs=(*RECORD.epochs, Epoch(1, 9.0, 9.0, None)), stopped="stopped after epoch 1")
    assert stopped.sentence("prune").endswith("loss 0.25; at the end 9); stopped after epoch 1")
