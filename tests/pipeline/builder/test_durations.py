"""Estimates of build times: from the same model, else from models of the same kind in proportion; never an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.builder.durations import NUM_KEPT, BuildTime, about, estimate_seconds, keep


def test_the_same_model_counts_first_then_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "builds.jsonl"
    assert estimate_seconds(file, "int8", "a", 10.0) == 0
    for digest, mib, seconds in (("a", 10.0, 50.0), ("a", 10.0, 60.0), ("b", 20.0, 60.0)):
        keep(file, BuildTime("int8", digest, mib, seconds))
    keep(file, BuildTime("fp16", "a", 10.0, 999.0))
    assert estimate_seconds(file, "int8", "a", 10.0) == 60
    assert estimate_seconds(file, "int8", "c", 4.0) == 20, "the median of 5, 6 and 3 seconds for each MiB, times 4"
    assert estimate_seconds(file, "fp32", "a", 10.0) == 0


def test_it_does_not_grow_without_bound(tmp_path: Path) -> None:
    file = tmp_path / "builds.jsonl"
    file.write_text('{"kind": "int8", "model_digest": "a", "model_mib": 1, "seconds": 1}\n' * (NUM_KEPT + 5))
    keep(file, BuildTime("int8", "b", 1.0, 7.0))
    assert len(file.read_text().splitlines()) == NUM_KEPT
    assert estimate_seconds(file, "int8", "b", 1.0) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["builds.jsonl"]


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", '{"kind": "int8"}', '{"kind": 1, "model_digest": 2, "model_mib": "x"}']
)
def test_damaged_lines_are_passed_over(tmp_path: Path, line: str) -> None:
    file = tmp_path / "builds.jsonl"
    keep(file, BuildTime("int8", "a", 1.0, 7.0))
    file.write_text(f"{line}\n{file.read_text()}{line}")
    assert estimate_seconds(file, "int8", "a", 1.0) == 7


def test_what_cannot_be_kept_is_not_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep(tmp_path / "file" / "builds.jsonl", BuildTime("int8", "a", 1.0, 7.0))
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(("seconds", "words"), [(0, ""), (1.2, "about 1 s"), (89, "about 89 s"), (200, "about 3 min")])
def test_in_words(seconds: float, words: str) -> None:
    assert about(seconds) == words
