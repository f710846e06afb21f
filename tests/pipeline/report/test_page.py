"""report.html: one file, no network, everything escaped, and the decision first."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from engines.contract import LayerTimes
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency.benchmark import Latency
from pipeline.latency.device_times import LayersRun
from pipeline.latency.power_modes import ComparedMode, ModeTiming, PowerModes
from pipeline.page import template
from pipeline.page.svg import SERIES
from pipeline.record import Recommendation, Record
from pipeline.report.page import headline, html_from_record, write_html

VOID = {"meta", "link", "br", "img", "use", "hr", "input", "path", "rect"}


class Reader(HTMLParser):
    """Checks that tags close in order; collects the text in sight, the ids and all attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def read(html: str) -> tuple[Reader, str]:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def test_the_slowest_layers_are_on_it(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert "Layers: where the time goes" in text
    assert (
        "int8@onnxruntime, batch 1, median of 50 runs; the 20 slowest of 23 layers; the library held at most 18 MiB of "
        "device memory. Layer Type ms Share, % Nodes of the model conv_23 + <relu> INT8 0.230 8.3 Conv_23 conv_22 "
        "+ <relu>"
    ) in text
    assert "Conv_4 " in text
    assert "Conv_3 " not in text
    silent = replace(record.variants[0], layers=LayersRun(1, 50, LayerTimes()))
    _, text = read(html_from_record(replace(record, variants=(silent, *record.variants[1:])), folder))
    assert "fp32@onnxruntime: its backend does not report layer times." in text
    none = tuple(replace(variant, layers=None) for variant in record.variants)
    assert "Layers:" not in html_from_record(replace(record, variants=none), folder)


def test_another_power_mode_has_its_ratios_with_intervals(record: Record, folder: Path) -> None:
    row = ModeTiming(
        "int8@onnxruntime", 1, Latency(2.0, 2.0, 2.1, 2.2, 2.5), 1.9, 2.1, 500.0, 12.0,
        0.5, (0.4751, 0.5251), None, None,
    )  # fmt: skip
    modes = PowerModes("MODE_30W", (), (ComparedMode("MAXN", (row,), 0, ""),), 0.012, ("In power mode MAXN.",))
    _, text = read(html_from_record(replace(record, power_modes=modes), folder))
    assert "ratios are to MODE_30W, where the first engine drifted by 1.2 % meanwhile" in text
    assert "2.00 (1.90 to 2.10) 2.50 0.50 (0.48 to 0.53) 12 –" in text
    row = replace(row, energy_ratio=1.2, energy_ratio_interval=(1.1, 1.3))
    modes = replace(modes, compared=(replace(modes.compared[0], engines=(row,)),))
    _, text = read(html_from_record(replace(record, power_modes=modes), folder))
    assert "0.50 (0.48 to 0.53) 12 1.20 (1.10 to 1.30)" in text


def test_the_decision_comes_first(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert text.index("Ship int8@onnxruntime") < text.index(record.recommendation.sentence) < text.index("Variants")
    assert text.index("0.228 ms") < text.index("Variants")
    assert "over FP32 on onnxruntime, p50; 95 % interval 1.76 to 1.86" in text


def test_the_table_has_every_variant_with_its_numbers(record: Record, folder: Path) -> None:
    html = html_from_record(record, folder)
    rows = re.findall(r"<tr[^>]*>\s*<th scope=\"row\">.*?</tr>", html.split("</tbody>")[0], re.DOTALL)
    cells = [re.findall(r"<td data-head=\"([^\"]+)\">([^<]*)</td>", row) for row in rows]
    assert len(rows) == 5
    assert dict(cells[2]) == {
        "top1": "91.25 %",
        "drop": "0.12 points",
        "agreement": "99.1 %",
        "p50, ms": "0.228",
        "p99, ms": "0.263",
        "speed-up": "1.81×",
        "throughput": "4,349/s",
    }
    assert '<td data-head="size">500 KiB<span class="small">0.27×</span></td>' in rows[2]
    assert '<td data-head="size">1.81 MiB</td>' in rows[0]
    assert dict(cells[4])["p50, ms"] == "–"
    assert "recommended" in rows[2]
    assert "simulated accuracy" in rows[3]
    assert "failed validation" in rows[3]
    assert "simulated accuracy" not in rows[0]


def test_numbers_stand_beside_their_protocol_and_machine(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert record.protocol is not None
    assert record.protocol.description in text
    assert "on Example CPU 4000, 2 cores, 16 GiB, Example GPU (driver 999.1), Linux x86_64, threads: 1." in text
    assert "Not timed: fp16@tensorrt_rtx, int8@tensorrt_rtx: no NVIDIA driver" in text
    assert "the original model in its own framework reaches 91.37 %" in text


def test_the_page_needs_no_network_and_no_script(record: Record, folder: Path) -> None:
    html = html_from_record(record, folder)
    reader, _ = read(html)
    assert all(link.startswith("#") for link in reader.links)
    assert "<script" not in html
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert set(re.findall(r"https?://[^\"' <]+", html)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in html


def test_texts_from_outside_are_escaped_everywhere(record: Record, folder: Path) -> None:
    evil = "<img src=x onerror=alert(1)>&\"'"
    variant = replace(record.variants[0], notes=(evil,), failures=(evil,), artifact=evil, latency_missing=evil)
    poisoned = replace(
        record,
        model=replace(record.model, source=evil),
        plan=replace(record.plan, path=evil),
        notes=(evil,),
        variants=(variant, *record.variants[1:]),
        tensors=(replace(record.tensors[0], name=evil, notes=(evil,)),),
        histograms=(replace(record.histograms[0], tensors=(evil, evil)),),
        recommendation=replace(record.recommendation, sentence=evil),
        versions={evil: evil},
    )
    html = html_from_record(poisoned, folder)
    assert "<img" not in html
    assert read(html)[1].count("<img src=x onerror=alert(1)>") >= 12


def test_ids_are_unique_and_the_page_is_the_same_every_time(record: Record, folder: Path) -> None:
    html = html_from_record(record, folder)
    ids = read(html)[0].ids
    assert len(ids) == len(set(ids))
    assert {"picture-accuracy", "picture-latency", "picture-sizes", "picture-sqnr", "picture-histogram-1"} <= set(ids)
    assert html == html_from_record(record, folder)


def test_pictures_have_a_description_for_those_who_cannot_see_them(record: Record, folder: Path) -> None:
    html = html_from_record(record, folder)
    labels = re.findall(r'<div role="img" aria-label="([^"]+)">', html)
    assert len(labels) == html.count("<svg ") == html.count('<svg aria-hidden="true"') == 7
    assert "int8@tensorrt_rtx 91.16 % at no latency" in labels[0]


def test_light_and_dark_define_the_same_colours(record: Record, folder: Path) -> None:
    style = re.findall(r"<style>(.*?)</style>", html_from_record(record, folder), re.DOTALL)[0]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    names = set(re.findall(r"(--[a-z0-9-]+): #", light))
    assert names == set(re.findall(r"(--[a-z0-9-]+): #", dark.split("\n}")[0]))
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", html_from_record(record, folder)))
    assert used - names == {"--font", "--mono"}


def luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", [0, 1])
def test_text_has_the_contrast_that_wcag_asks_for(record: Record, folder: Path, mode: int) -> None:
    style = html_from_record(record, folder).split("@media (prefers-color-scheme: dark)")[mode]
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", style))
    assert sum(name.startswith("series-") for name in colours) == len(SERIES)
    pairs = [
        (ink, paper)
        for ink in ("ink", "quiet", *(f"series-{number}" for number in range(len(SERIES))))
        for paper in ("paper", "card")
    ]
    for ink, paper in [*pairs, ("good", "good-soft"), ("warn", "warn-soft"), ("ink", "good-soft")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[paper])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


@pytest.mark.parametrize(
    ("outcome", "variant", "words"),
    [
        ("ship", "int8@a", "Ship int8@a"),
        ("stay", "fp32@a", "Stay with fp32@a"),
        ("undecided", "", "Not decided yet"),
    ],
)
def test_the_headline_is_the_outcome(outcome: str, variant: str, words: str) -> None:
    assert headline(Recommendation(outcome, variant, "", 0.01)) == words  # type: ignore[arg-type]


def test_a_run_without_metric_timings_or_ranges_has_a_page(record: Record, folder: Path) -> None:
    bare = replace(
        record,
        metric=None,
        protocol=None,
        data=replace(record.data, calibration=None),
        variants=tuple(replace(variant, metric=None, metric_drop=None) for variant in record.variants[3:]),
        tensors=(),
        methods=(),
        histograms=(),
        lint=(),
        stop=None,
        settling=None,
        served=(),
        notes=(),
        recommendation=Recommendation("undecided", "", "Nothing to go by.", 0.01),
    )
    _, text = read(html_from_record(bare, folder))
    assert "Not decided yet" in text
    assert "None" not in text
    assert "Calibration data" not in text


def test_without_a_metric_the_farthest_output_stands_in_its_columns(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(replace(record, metric=None), folder))
    assert "cosine" in text
    assert "0.999 32.5 dB" in " ".join(text.split())
    assert "Cosine and SQNR are of the output that is farthest" in " ".join(text.split())


def test_every_tensor_has_every_method_and_the_best_of_them(record: Record, folder: Path) -> None:
    html = html_from_record(record, folder)
    table = html[html.index("calibrated ranges</summary>") :].split("</details>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
    assert len(rows) == len(record.tensors) == 16
    cells = [re.sub(r"<[^>]+>", " ", cell).split() for cell in re.findall(r"<td[^>]*>(.*?)</td>", rows[0], re.DOTALL)]
    assert cells[1:3] == [["0"], ["6.2"]]
    assert cells[3] == ["24.0", "dB", "±4", "0.01", "%"]
    assert cells[6] == ["25.0", "dB", "±5.5", "0.002", "%"]
    assert cells[7:9] == [["entropy"], ["mse"]]
    assert read(html)[1].count("all zero") == 1


def test_which_method_was_best_where_is_said(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert "Highest SQNR of 15 tensors: mse on 15." in text
    assert "entropy 16 0 4 32.1 dB" in text


def test_a_shared_histogram_is_shown_once_and_names_all_who_have_it(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert "0 to 6.2; the same values as model/flatten/Reshape" in text
    many = replace(record.histograms[0], tensors=("model/block_0/depthwise_conv2d/BiasAdd", *"abcde"))
    _, text = read(html_from_record(replace(record, histograms=(many,)), folder))
    assert "the same values as a, b, c and 2 more" in " ".join(text.split()).replace(" ,", ",")


def test_what_was_found_of_the_calibration_data_is_listed(record: Record, folder: Path) -> None:
    _, text = read(html_from_record(record, folder))
    assert "warning, overlap: 12 of 200 calibration samples are <evaluation> samples too" in text
    assert record.settling is not None
    assert record.settling.sentence() in text


def test_an_output_that_is_not_finite_is_said(record: Record, folder: Path) -> None:
    first, second = record.variants[0], record.variants[1]
    equal = replace(first, comparison=(replace(first.comparison[0], max_abs=0.0, psnr_db=None),))
    gone = replace(second, comparison=(replace(second.comparison[0], max_abs=None, psnr_db=None),))
    html = html_from_record(replace(record, variants=(equal, gone)), folder)
    assert html.count("not finite") == 2
    assert "<td>equal</td>" in html


def test_missing_raw_latencies_are_one_sentence(record: Record, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp32@onnxruntime-batch1\.npz: holds no raw latencies"):
        html_from_record(record, tmp_path)


def test_without_the_extra_the_install_line_is_given(
    record: Record, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(Unavailable, match=r"needs matplotlib; pip install 'trtforge\[report\]'"):
        write_html(record, folder / "report.html")
    assert not (folder / "report.html").exists()


def test_the_page_is_written_where_it_is_asked_for(record: Record, folder: Path) -> None:
    write_html(record, folder / "report.html")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert len(html) < 200_000
