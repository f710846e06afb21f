"""The pictures of histograms: every method is marked, no label hides another, an outlier stays in sight."""

import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.page.svg import Picture
from pipeline.record import MethodQuality, Record, TensorHistogram, TensorQuality
from pipeline.report.histogram_pictures import GAP, NUM_ROWS, Place, histogram_pictures, label_places

SVG = "{http://www.w3.org/2000/svg}"
AXES = 320.0
WIDTHS = (45.0, 42.0, 62.0, 25.0)
"""About those of the four methods' labels, points."""


def texts(picture: Picture) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.fromstring(picture.svg).iter(f"{SVG}text")]


def one_tensor(record: Record, tensor: TensorQuality, counts: tuple[int, ...], bin_width: float) -> Record:
    return replace(record, tensors=(tensor,), histograms=(TensorHistogram((tensor.name,), bin_width, counts, 0),))


def drawn(record: Record, tensor: TensorQuality, counts: tuple[int, ...], bin_width: float) -> Picture:
    (found,) = histogram_pictures(one_tensor(record, tensor, counts, bin_width))
    return found.picture


def area_heights(picture: Picture, colour: str) -> list[float]:
    """How far the corners of what is filled with a colour rise above its base."""
    paths = ET.fromstring(picture.svg).iter(f"{SVG}path")
    filled = [path.get("d", "") for path in paths if f"fill: var(--{colour})" in path.get("style", "")]
    y = [float(pair[1]) for path in filled for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
    return [max(y) - value for value in y] if y else []


def test_each_histogram_is_drawn_once_with_every_method(record: Record) -> None:
    found = histogram_pictures(record)
    assert [one.tensor.sqnr_db for one in found] == [24.0, 25.3]
    assert found[0].also == ("model/flatten/Reshape",)
    assert [one.picture.key for one in found] == ["histogram-1", "histogram-2"]
    for one in found:
        assert {"entropy", "minmax", "percentile", "mse", "|x|", "1", "100"} <= set(texts(one.picture))
    assert "entropy clips beyond 4; minmax clips beyond 6.2" in found[0].picture.alt


def test_the_chosen_methods_label_is_the_strong_one(record: Record) -> None:
    picture = histogram_pictures(record)[0].picture
    elements = ET.fromstring(picture.svg).iter(f"{SVG}text")
    bold = ["".join(one.itertext()).strip() for one in elements if "font-weight: 700" in one.get("style", "")]
    assert bold == ["entropy"]


def test_colours_come_from_the_page_and_bytes_are_the_same_every_time(record: Record) -> None:
    first, second = histogram_pictures(record), histogram_pictures(record)
    assert first == second
    for one in first:
        assert set(re.findall(r"#[0-9a-f]{6}", one.picture.svg)) == set()
        assert "DejaVu" not in one.picture.svg
        assert len(one.picture.svg) < 30_000


def test_a_single_outlier_far_out_is_seen_in_the_colour_of_what_is_clipped(
    record: Record, make_tensor: Callable[..., TensorQuality]
) -> None:
    counts = (1_000_000, *[0] * 198, 1)
    picture = drawn(record, make_tensor("x", 20.0), counts, 0.05)
    assert max(area_heights(picture, "series-2")) > 3.0
    assert max(area_heights(picture, "series-0")) > 40.0
    assert {"1", "100", "10k", "1M"} <= set(texts(picture))


def test_where_nothing_is_clipped_nothing_has_that_colour(
    record: Record, make_tensor: Callable[..., TensorQuality]
) -> None:
    assert area_heights(drawn(record, make_tensor("x", 20.0), (5, 4, 3), 0.5), "series-2") == []
    # The largest value is the threshold, and the column it stands in goes beyond.
    whole = replace(make_tensor("x", 20.0), clipped_share=0.0)
    assert area_heights(drawn(record, whole, (5, 4, 3), 1.5), "series-2") == []


@pytest.mark.parametrize("largest", [1, 3, 9, 10, 99_999, 10**7])
def test_counts_stand_at_powers_of_ten_alone(
    record: Record, make_tensor: Callable[..., TensorQuality], largest: int
) -> None:
    said = texts(drawn(record, make_tensor("x", 20.0), (largest, 1, 1), 2.5))
    counts = [text for text in said if re.fullmatch(r"10*k?|1M|10M", text)]
    assert 1 <= len(counts) <= 5
    assert set(said) - set(counts) - {"entropy", "minmax", "percentile", "mse", "|x|"} <= {"0", "2", "4", "6"}


@pytest.mark.parametrize("amax", [1e-38, 6e-5, 1.0, 3e38])
@pytest.mark.parametrize("counts", [(1,), (0, 0, 7), (10**15,) * 200])
def test_any_magnitude_and_count_is_drawn(
    record: Record, make_tensor: Callable[..., TensorQuality], amax: float, counts: tuple[int, ...]
) -> None:
    by_method = dict.fromkeys(("entropy", "minmax", "percentile", "mse"), MethodQuality(amax, 3.0, 0.0))
    tensor = replace(make_tensor("x", 3.0), amax=amax, by_method=by_method)
    picture = drawn(record, tensor, counts, 1.01 * amax / len(counts))
    assert {"entropy", "minmax", "percentile", "mse"} <= set(texts(picture))


def test_a_record_without_histograms_has_no_pictures(record: Record) -> None:
    assert histogram_pictures(replace(record, histograms=())) == []


def test_labels_with_room_stand_in_one_row_on_the_right() -> None:
    assert label_places([10, 80, 160, 240], WIDTHS, AXES) == [Place(0, "right")] * 4


def test_labels_of_one_threshold_stand_above_each_other() -> None:
    assert sorted(place.row for place in label_places([AXES] * 4, WIDTHS, AXES)) == [0, 1, 2, 3]


@settings(max_examples=60)
@given(st.lists(st.floats(0, AXES), min_size=4, max_size=4))
def test_no_label_lies_on_another_or_on_a_line(x: list[float]) -> None:
    places = label_places(x, WIDTHS, AXES)
    boxes = [
        (at + GAP, at + GAP + width) if place.side == "right" else (at - GAP - width, at - GAP)
        for at, width, place in zip(x, WIDTHS, places)
    ]
    for i, (low, high) in enumerate(boxes):
        assert 0 <= low < high <= AXES
        assert 0 <= places[i].row < NUM_ROWS
        for j in set(range(4)) - {i}:
            assert not (places[j].row >= places[i].row and low < x[j] < high), "a line through a label"
            apart = high <= boxes[j][0] or boxes[j][1] <= low
            assert places[i].row != places[j].row or apart, "a label on a label"
