"""Notes of one kind are one line."""

from __future__ import annotations

from dataclasses import replace

from pipeline.page.notes import notes_of_variants
from tests.made import variant_named

VARIANT = variant_named("int8@onnxruntime", 0.0, 1)


def test_the_same_note_of_several_variants_is_one_line() -> None:
    variants = [replace(VARIANT, notes=("TF32 is on", "7 bits")), replace(VARIANT, name="b", notes=("TF32 is on",))]
    assert notes_of_variants(variants) == ["int8@onnxruntime, b: TF32 is on", "int8@onnxruntime: 7 bits"]


def test_notes_that_differ_in_a_name_and_numbers_are_counted() -> None:
    notes = [f"node 'n{index}' stays FP32: it reaches {index}e+5" for index in range(1, 4)]
    other = ["node 'x' is kept", "built in 3 s", "built in 4 s"]
    assert notes_of_variants([replace(VARIANT, notes=(*notes, *other))]) == [
        "int8@onnxruntime: node 'n1' stays FP32: it reaches 1e+5 (and 2 more such notes)",
        "int8@onnxruntime: node 'x' is kept",
        "int8@onnxruntime: built in 3 s",
        "int8@onnxruntime: built in 4 s",
    ]
