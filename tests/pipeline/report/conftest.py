"""A made-up run with every case that a report must show: nothing in it was measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.record import Record, TensorQuality
from tests.made import sample_record, tensor_quality, write_queries


@pytest.fixture
def record() -> Record:
    return sample_record()


@pytest.fixture
def make_tensor() -> Callable[..., TensorQuality]:
    return tensor_quality


@pytest.fixture
def folder(record: Record, tmp_path: Path) -> Path:
    """A report's folder with the raw latencies in place."""
    write_queries(record, tmp_path)
    return tmp_path
