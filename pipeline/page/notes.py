"""The notes of a run's variants, each once: those that say the same of several variants or nodes are one line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.record import VariantRecord

NAME = re.compile("'[^']*'")
NUMBER = re.compile(r"\d[\d.e+-]*")


def notes_of_variants(variants: Sequence[VariantRecord]) -> list[str]:
    """``int8@onnxruntime, int8@reference: node 'a' stays FP32: … (and 11 such)``: one line for each kind of note.

    Notes are of one kind if they differ in a quoted name and in numbers alone. The record has them all.
    """
    lines: dict[str, list[str]] = {}
    for variant in variants:
        for note in one_of_each_kind(variant.notes):
            lines.setdefault(note, []).append(variant.name)
    return [f"{', '.join(names)}: {note}" for note, names in lines.items()]


def one_of_each_kind(notes: Sequence[str]) -> list[str]:
    """The first note of each kind, with the number of the others."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(_kind(note), []).append(note)
    return [
        kind[0] if len(kind) == 1 else f"{kind[0]} (and {len(kind) - 1} more such note{'s' * (len(kind) > 2)})"
        for kind in kinds.values()
    ]


def _kind(note: str) -> str:
    return NUMBER.sub("#", NAME.sub("''", note)) if NAME.search(note) else note
