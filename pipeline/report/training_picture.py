"""The pictures of how the loss fell while networks were trained, for report.html."""

from __future__ import annotations

from pipeline.page.svg import ACCENT, QUIET, STYLE, Picture, empty_figure, svg_from_figure
from pipeline.record import Record
from pipeline.training.curve import TrainingRecord


def training_pictures(record: Record) -> list[Picture]:
    """One for each network that was trained."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        return [_curve(name, training) for name, training in record.trainings.items()]


def _curve(name: str, training: TrainingRecord) -> Picture:
    """The loss on held-out samples by epoch, and that of the samples that train."""
    figure = empty_figure(190)
    ax = figure.subplots()
    held_out = [(e.epoch, e.held_out_loss) for e in training.epochs if e.held_out_loss is not None]
    train = [(e.epoch, e.train_loss) for e in training.epochs if e.train_loss is not None]
    ax.plot(*zip(*held_out), color=ACCENT, marker="o", ms=4, label="held out")
    if train:
        ax.plot(*zip(*train), color=QUIET, ls=(0, (2, 2)), label="training")
    if training.best:
        ax.axvline(training.best, color=QUIET, lw=1, ls=(0, (4, 3)), zorder=1)
    ax.set_ylim(0, None)
    ax.set_xlabel("epoch")
    ax.legend(frameon=False)
    alt = "; ".join(f"epoch {epoch}: {loss:.4g}" for epoch, loss in held_out)
    sentence = training.sentence("prune" if name == "pruned" else "tune")
    key = "training-" + name.replace("+", "-").replace("@", "-")
    caption = (
        f"{sentence}. Loss: {'; '.join(training.compared)}. Epoch 0 is the network before it was trained; the vertical "
        "line is the best epoch."
    )
    return Picture(key, f"Training: {name}", caption, alt, svg_from_figure(figure, key))
