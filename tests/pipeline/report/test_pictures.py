"""The pictures: right numbers, no fixed colour, nothing that changes from run to run."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure

from calibration.arrays import Floats
from engines.precision import rank
from pipeline.latency.benchmark import queries_from_npz
from pipeline.page.svg import MAX_NAME, Picture, empty_figure, latency_axis, shortened
from pipeline.record import Record, TensorQuality
from pipeline.report import pictures as pictures_module
from pipeline.report.pictures import MAX_TENSORS, pictures


@pytest.fixture
def latencies(record: Record, folder: Path) -> dict[str, Floats]:
    timed = [variant for variant in record.variants if variant.by_batch]
    return {v.name: queries_from_npz(folder / v.by_batch[0].queries_file).latency_ms for v in timed}


def drawn(record: Record, latencies: dict[str, Floats]) -> dict[str, Picture]:
    return {picture.key: picture for picture in pictures(record, latencies)}


def texts(picture: Picture) -> list[str]:
    """All texts of an SVG, as a reader sees them."""
    elements = ET.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")
    return ["".join(element.itertext()).strip() for element in elements]


def test_a_full_run_has_four_pictures(record: Record, latencies: dict[str, Floats]) -> None:
    assert list(drawn(record, latencies)) == ["accuracy", "latency", "sizes", "sqnr"]


def test_every_variant_is_named_in_the_pictures(record: Record, latencies: dict[str, Floats]) -> None:
    found = drawn(record, latencies)
    accuracy = texts(found["accuracy"])
    assert {"fp32@onnxruntime", "int8@onnxruntime", "int8@tensorrt_rtx (sim.)", "not timed"} <= set(accuracy)
    assert "bound: 0.50 points from FP32" in accuracy
    assert {"fp32@onnxruntime", "p50 0.411 · p99 0.475 ms"} <= set(texts(found["latency"]))
    assert {"int8@tensorrt_rtx", "715 KiB", "1.81 MiB"} <= set(texts(found["sizes"]))


def test_simulated_accuracies_are_explained_only_where_there_are_any(
    record: Record, latencies: dict[str, Floats]
) -> None:
    assert "simulated" in drawn(record, latencies)["accuracy"].caption
    measured = drawn(replace(record, variants=record.variants[:3]), latencies)["accuracy"]
    assert "simulated" not in measured.caption
    assert not any("(sim.)" in text or text == "not timed" for text in texts(measured))


def test_the_worst_tensors_come_first(record: Record, latencies: dict[str, Floats]) -> None:
    shuffled = replace(record, tensors=record.tensors[::-1])
    picture = drawn(shuffled, latencies)["sqnr"]
    numbers = [float(text.removesuffix(" dB")) for text in texts(picture) if text.endswith(" dB")]
    assert numbers == sorted(numbers)
    assert numbers[0] == 24.0
    assert len(numbers) == MAX_TENSORS
    assert f"The {MAX_TENSORS} worst of 15 quantized tensors" in picture.caption


def test_only_quantized_tensors_are_among_the_worst_and_equal_ones_once(
    record: Record, latencies: dict[str, Floats], make_tensor: Callable[..., TensorQuality]
) -> None:
    tensors = (
        replace(make_tensor("float", 1.0), quantized=False), make_tensor("conv", 20.0), make_tensor("reshaped", 20.0),
        make_tensor("other", 30.0),
    )  # fmt: skip
    picture = drawn(replace(record, tensors=tensors), latencies)["sqnr"]
    assert picture.alt == "conv 20.0 dB; other 30.0 dB"
    assert picture.caption.startswith("All 2 quantized tensors (of tensors with the same values, one), worst first")


def test_a_negative_ratio_and_tensors_without_one_can_be_drawn(
    record: Record, latencies: dict[str, Floats], make_tensor: Callable[..., TensorQuality]
) -> None:
    tensors = (make_tensor("bad", -3.0), make_tensor("zero", None, "all zero"))
    picture = drawn(replace(record, tensors=tensors), latencies)["sqnr"]
    assert "-3.0 dB" in texts(picture)
    assert "zero" not in texts(picture)
    only_zero = drawn(replace(record, tensors=tensors[1:]), latencies)["sqnr"]
    assert "0 quantized tensors" in only_zero.caption


def test_colours_and_fonts_come_from_the_page(record: Record, latencies: dict[str, Floats]) -> None:
    for picture in pictures(record, latencies):
        assert set(re.findall(r"#[0-9a-f]{6}", picture.svg)) == set()
        assert "var(--ink)" in picture.svg or "var(--quiet)" in picture.svg
        assert "DejaVu" not in picture.svg
        assert "<style" not in picture.svg
    assert f"var(--series-{rank('int8')})" in drawn(record, latencies)["sizes"].svg


def test_the_same_record_is_the_same_bytes_without_a_date(record: Record, latencies: dict[str, Floats]) -> None:
    first, second = pictures(record, latencies), pictures(record, latencies)
    assert first == second
    assert not any("date" in picture.svg.lower() or "matplotlib" in picture.svg.lower() for picture in first)


def test_no_name_occurs_in_two_pictures(record: Record, latencies: dict[str, Floats]) -> None:
    ids = [name for picture in pictures(record, latencies) for name in re.findall(r' id="([^"]+)"', picture.svg)]
    assert len(ids) == len(set(ids))
    for picture in pictures(record, latencies):
        own = set(re.findall(r' id="([^"]+)"', picture.svg))
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', picture.svg))
        assert used <= own


def test_texts_from_outside_are_escaped_and_are_no_formulas(
    record: Record, latencies: dict[str, Floats], make_tensor: Callable[..., TensorQuality]
) -> None:
    evil = "<script>alert(1)</script> & $x_1$ \\frac"
    tensors = (make_tensor(evil, 20.0),)
    picture = drawn(replace(record, tensors=tensors), latencies)["sqnr"]
    assert "<script" not in picture.svg
    assert shortened(evil) in texts(picture)


def test_a_slow_backend_makes_the_latency_axis_logarithmic(record: Record, latencies: dict[str, Floats]) -> None:
    slow = record.variants[1]
    timing = slow.by_batch[0]
    slower = replace(timing, latency_ms=replace(timing.latency_ms, p50=80.0, p99=95.0))
    changed = replace(record, variants=(record.variants[0], slow.timed((slower,))))
    found = drawn(changed, {**latencies, slow.name: np.linspace(75.0, 95.0, 400)})
    ticks = {float(text) for text in texts(found["latency"]) if re.fullmatch(r"[0-9.]+", text)}
    assert {1.0, 10.0, 100.0} & ticks >= {1.0, 10.0}


def test_a_logarithmic_axis_has_more_than_one_number() -> None:
    from matplotlib.ticker import NullFormatter

    for low, high, some in ((0.13, 4.6, {0.2, 0.5, 1.0, 2.0}), (0.01, 90.0, {0.1, 1.0, 10.0})):
        ax = empty_figure(100).subplots()
        latency_axis(ax, [low, high], "ms")
        ax.set_xlim(low, high)
        ticks = {round(float(tick), 6) for tick in ax.get_xticks() if low <= tick <= high}
        assert some <= ticks
        assert len(ticks) <= 7
        assert isinstance(ax.xaxis.get_minor_formatter(), NullFormatter)


def test_constant_latencies_can_be_drawn(record: Record) -> None:
    only = record.variants[:1]
    p50 = only[0].by_batch[0].latency_ms.p50
    flat = replace(only[0].by_batch[0], latency_ms=replace(only[0].by_batch[0].latency_ms, p99=p50, mean=p50))
    same = {only[0].name: np.full(200, p50)}
    found = drawn(replace(record, variants=(only[0].timed((flat,)),)), same)
    assert "fp32@onnxruntime" in texts(found["latency"])


def test_a_run_without_metric_timings_or_ranges_shows_sizes_only(record: Record) -> None:
    untimed = tuple(replace(variant, metric=None) for variant in record.variants[3:])
    assert list(drawn(replace(record, metric=None, variants=untimed, tensors=()), {})) == ["sizes"]


def test_many_variants_with_nearly_equal_numbers_are_all_labelled_apart(
    record: Record, latencies: dict[str, Floats]
) -> None:
    crowd = tuple(replace(record.variants[0], name=f"fp32@crowd{index}") for index in range(8))
    many = {variant.name: latencies["fp32@onnxruntime"] for variant in crowd}
    picture = drawn(replace(record, variants=crowd), many)["accuracy"]
    root = ET.fromstring(picture.svg)
    svg = "{http://www.w3.org/2000/svg}text"
    places = [
        (element.get("x"), element.get("y"), element.get("transform"))
        for element in root.iter(svg)
        if (element.text or "").startswith("fp32@crowd")
    ]
    assert len(places) == len(set(places)) == 8


def test_the_line_of_the_bound_runs_through_no_label(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def keep(figure: Figure, _key: str) -> str:
        figures.append(figure)
        return ""

    monkeypatch.setattr(pictures_module, "svg_from_figure", keep)
    assert record.metric is not None
    near = tuple(
        replace(variant, metric=0.9137 - drop, metric_drop=drop)
        for variant, drop in zip(record.variants, (0.0, 0.0095, 0.0099, 0.0101, 0.0105))
    )
    pictures_module._accuracy(replace(record, variants=near), record.metric)
    (figure,) = figures
    figure.canvas.draw()
    line = next(line for line in figure.axes[0].lines if line.get_linestyle() == "--")
    labels = [text for ax in figure.axes for text in ax.texts if "@" in text.get_text()]
    assert len(labels) == 5
    assert not [text.get_text() for text in labels if text.get_window_extent().overlaps(line.get_window_extent())]


def test_no_text_is_smaller_than_11_pixels_on_a_phone(record: Record, latencies: dict[str, Floats]) -> None:
    """A phone of 360 pixels: 16 beside the page, 10 and a line beside the picture, which takes 7 of them back."""
    width = 360 - 2 * (16 + 10 + 1 - 7)
    for picture in drawn(record, latencies).values():
        (box,) = re.findall(r'viewBox="0 0 ([\d.]+) ', picture.svg)
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", picture.svg)]
        assert sizes
        assert min(sizes) * width / float(box) >= 10.9, picture.key


def test_sizes_have_their_ratio(record: Record, latencies: dict[str, Floats]) -> None:
    said = texts(drawn(record, latencies)["sizes"])
    assert "500 KiB · 0.27×" in said
    assert "1.81 MiB" in said


def test_a_long_name_loses_its_middle() -> None:
    name = "model/" + "very_" * 20 + "long/BiasAdd"
    short = shortened(name)
    assert len(short) == MAX_NAME
    assert short.startswith("model/")
    assert short.endswith("long/BiasAdd")
    assert shortened("short") == "short"
