"""Last good engines of a night are delivered where [device.NAME.deliver] says, if others lie there, or none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.artifact import plain
from pipeline.errors import EXIT_STATUS, exit_status
from pipeline.machine import child_process
from pipeline.nightly.delivery_place import Deliver
from pipeline.nightly.fleet import Line
from pipeline.nightly.line import Job, command_of, last_good, last_record
from pipeline.nightly.outcome import last_words, write_line
from pipeline.nightly.record import LineRecord
from pipeline.store import digest_of_data
from pipeline.trained.pixels import preprocess_of

LOG = "deliver.txt"
"""What the command printed, in the folder of the first of its lines."""
DONE, NOT_DONE = "; delivered to ", "; not delivered: "
SENTENCE = re.compile(f"({DONE}|{NOT_DONE}).*", re.DOTALL)
DELIVERS = "trtforge deliver "


@dataclass(frozen=True)
class Delivery:
    """The lines of a model whose engines go to one place together."""

    place: Deliver
    folder: Path
    """As `trtforge deliver` takes it."""
    lines: tuple[Line, ...]

    @property
    def target(self) -> Path:
        """The folder that is the model's alone."""
        return self.folder / self.lines[0].model if self.place.is_shared else self.folder

    def state(self, store: Path) -> str:
        """SHA-256 (hex) of all that is delivered, and how.

        Raises:
            ConfigError: the plan cannot be read.
        """
        engines = [[line.name, last_good(store, line.name)] for line in self.lines]
        pixels = "" if self.place.is_shared else preprocess_of(self.lines[0].plan()).describe()
        return digest_of_data([plain(self.place), str(self.folder), engines, pixels])

    def command(self, store: Path) -> list[str]:
        """The arguments of `trtforge`."""
        first = self.lines[0]
        names = [line.name for line in self.lines]
        words = self.place.words(names, first.model, str(first.plan_path), str(self.folder))
        return [*words, "--store", str(store)]


def deliver_all(job: Job, lines: Sequence[Line], chosen: set[Line], records: dict[str, LineRecord]) -> list[str]:
    """Deliver what has to be; the records of its lines say so.

    Args:
        job: the job.
        lines: all lines of the fleet.
        chosen: those that are asked for; what goes to one place with one of them is delivered too.
        records: by the names of lines; changed.

    Returns:
        A sentence for each line of which nothing but the delivery was done.
    """
    notes = []
    for delivery in deliveries_of(job, lines, chosen):
        last = [record.delivered for line in delivery.lines if (record := last_record(job, line)) is not None]
        try:
            state = delivery.state(job.store)
        except tuple(EXIT_STATUS):
            continue  # Of a plan that cannot be read, which its line says.
        if set(last) == {state} and delivery.target.is_dir() and not job.wanted.always:
            continue
        change = _delivered(job, delivery, state)
        for line in delivery.lines:
            if (stored := last_record(job, line)) is not None:
                write_line(job, line, change(line, stored))
            if line.name in records:
                records[line.name] = record = change(line, records[line.name])
                notes += [f"{line.name}{record.sentence[at.start() :]}." for at in _said(record)]
    return notes


def _said(record: LineRecord) -> list[re.Match[str]]:
    """What the record says of its delivery, where it would not be read: the line is not one of tonight's."""
    at = SENTENCE.search(record.sentence)
    return [at] if at is not None and record.state == "served" and record.status == 0 else []


def deliveries_of(job: Job, lines: Sequence[Line], chosen: set[Line]) -> list[Delivery]:
    """What goes to one place, of lines that have a last good engine."""
    places: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        place = job.fleet_file.device[line.device].deliver
        if place.to:
            places.setdefault((line.model, place.folder.rstrip("/")), []).append(line)
    deliveries = []
    for (model, _), together in places.items():
        good = tuple(line for line in together if last_good(job.store, line.name))
        if good and chosen.intersection(together):
            place = job.fleet_file.device[good[0].device].deliver
            folder = job.fleet_file.path.parent / place.folder
            deliveries.append(Delivery(place, folder if place.is_shared else folder / model, good))
    return deliveries


def _delivered(job: Job, delivery: Delivery, state: str) -> Callable[[Line, LineRecord], LineRecord]:
    """Deliver it; what becomes of the records of its lines."""
    arguments = delivery.command(job.store)
    first = delivery.lines[0]
    log = job.folder(first) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    try:
        status = child_process.call(log, f"deliver {first.name}", job.run_command, arguments)
        words = last_words(log)
    except tuple(EXIT_STATUS) as error:
        status, words = exit_status(error), str(error)
    command = shlex.join(["trtforge", *arguments])

    def change(line: Line, record: LineRecord) -> LineRecord:
        record = _before(job, line, record)
        if not status:
            return replace(record, delivered=state, sentence=f"{record.sentence}{DONE}{delivery.target}")
        record = replace(record, delivered="", sentence=f"{record.sentence}{NOT_DONE}{words}")
        return record if record.status else replace(record, status=status, command=command)

    return change


def _before(job: Job, line: Line, record: LineRecord) -> LineRecord:
    """The record without what an earlier delivery made of it."""
    sentence = SENTENCE.sub("", record.sentence)
    if not record.command.startswith(DELIVERS):
        return replace(record, sentence=sentence)
    command = shlex.join(["trtforge", *command_of(job, line, line.plan())])
    return replace(record, sentence=sentence, status=0, command=command)
