"""The page of a run in which a network was trained, and in which INT8 held a bound by mixed precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.accuracy.mixture import MixtureInfo, MixturePoint
from pipeline.json_record import write_json
from pipeline.record import Record
from pipeline.report.mixture_picture import mixture_pictures
from pipeline.report.page import html_from_record
from pipeline.report.table import report_from_json
from pipeline.report.training_picture import training_pictures
from pipeline.training.curve import Epoch, TrainingRecord

TRAINING = TrainingRecord(
    loss="teacher",
    metric="",
    num_train=75,
    num_held_out=25,
    epochs=(Epoch(0, None, 0.5, None), Epoch(1, 0.4, 0.3, None), Epoch(2, 0.3, None, None)),
    best=1,
    is_used=True,
    decision="loss 0.3 against 0.5 before, p = 0.001",
    agreement_db=None,
    stopped="stopped in epoch 2, where the loss is no number: a lower rate may help",
    device="cpu",
    compared=("'y': squared error by the variance of the teacher's answers (MSE): metric mae compares values",),
)
MIXTURE = MixtureInfo(
    in_float=("a", "b"),
    num_layers=9,
    points=(
        MixturePoint(0, 11.5, 0.2, holds=False), MixturePoint(1, 14.0, 0.1, holds=False),
        MixturePoint(2, 26.25, 0.0, holds=True),
    ),
    bound="SQNR of at least 25 dB",
)  # fmt: skip


def trained(record: Record) -> Record:
    return replace(record, trainings={"tuned+int8@onnxruntime": TRAINING}, mixtures={"int8@onnxruntime": MIXTURE})


def test_the_page_shows_the_curve_and_the_frontier(record: Record, folder: Path) -> None:
    html = html_from_record(trained(record), folder)
    assert 'id="picture-training-tuned-int8-onnxruntime"' in html
    assert 'id="picture-mixture-int8-onnxruntime"' in html
    (curve,), (frontier,) = training_pictures(trained(record)), mixture_pictures(trained(record))
    assert curve.alt == "epoch 0: 0.5; epoch 1: 0.3"
    assert "epoch 1 was the best on 25 held-out samples: loss 0.3 against 0.5 before, p = 0.001" in curve.caption
    assert "Loss: 'y': squared error by the variance of the teacher's answers (MSE): metric mae" in curve.caption
    assert frontier.alt == "0 in float: 0.2; 1 in float: 0.1; 2 in float: 0"
    assert frontier.caption.startswith(
        "2 of the nodes that INT8's noise comes from stay in float for SQNR of at least 25"
    )


def test_the_frontier_has_times_where_they_were_measured(record: Record, folder: Path) -> None:
    points = tuple(replace(point, cpu_ms=ms) for point, ms in zip(MIXTURE.points, (0.5, None, 0.8), strict=True))
    timed = replace(trained(record), mixtures={"int8@onnxruntime": replace(MIXTURE, points=points, fp32_ms=1.0)})
    (frontier,) = mixture_pictures(timed)
    assert frontier.alt.endswith("2 in float: 0; 0 in float: 0.5 ms; 2 in float: 0.8 ms")
    assert "CPU time of one sample in ONNX Runtime, on one thread, all in turns" in frontier.caption
    html = html_from_record(timed, folder)
    rows = [row for row in html.split("<tr>") if "int8@onnxruntime" in row and "yes" in row and "1.25" in row]
    assert len(rows) == 1
    assert "<td>0.8</td>" in rows[0]
    assert "CPU time" not in mixture_pictures(trained(record))[0].caption


def test_without_any_there_is_none(record: Record) -> None:
    assert training_pictures(record) == mixture_pictures(record) == []
    one_point = replace(MIXTURE, points=MIXTURE.points[:1])
    assert mixture_pictures(replace(record, mixtures={"int8@onnxruntime": one_point})) == []


def test_the_record_is_read_back(record: Record, tmp_path: Path) -> None:
    write_json(trained(record), tmp_path / "report.json")
    assert report_from_json(tmp_path / "report.json") == trained(record)
