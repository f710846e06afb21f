"""The picture of how ranges settle."""

from __future__ import annotations

import re
from dataclasses import replace

from calibration.ranges.convergence import Convergence, Point
from pipeline.record import Record
from pipeline.report.convergence_picture import convergence_pictures

SETTLED = Convergence(
    "percentile 99.99",
    tuple(f"t{i}" for i in range(16)),
    (Point(1, 0.2, 0.51), Point(2, 0.12, 0.3), Point(4, 0.05, 0.09), Point(8, 0.02, 0.04), Point(16, 0, 0)),
    4,
)


def test_the_picture_says_what_it_shows(record: Record) -> None:
    (picture,) = convergence_pictures(replace(record, settling=SETTLED))
    assert picture.key == "settling"
    assert picture.caption.startswith("Ranges converged after 4 of 16 samples")
    assert "ranges of 16 tensors (read by percentile 99.99)" in picture.caption
    assert picture.alt == "1 samples: 51%; 2 samples: 30%; 4 samples: 9%; 8 samples: 4%; 16 samples: 0%"
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture.svg)
    assert {"1", "2", "4", "8", "16", "samples", "nine of ten tensors", "half of the tensors"} <= set(texts)
    assert "#" not in re.sub(r'"#\w+"|url\(#\w+\)', "", picture.svg), "its colours are the page's"


def test_the_same_record_gives_the_same_bytes(record: Record) -> None:
    assert convergence_pictures(record) == convergence_pictures(record)


def test_without_a_curve_there_is_no_picture(record: Record) -> None:
    assert convergence_pictures(replace(record, settling=None)) == []
    assert convergence_pictures(replace(record, settling=replace(SETTLED, points=SETTLED.points[-1:]))) == []
