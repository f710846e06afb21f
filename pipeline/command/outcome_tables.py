"""Tables for the terminal: those of `validate` and `benchmark`, and what all have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.command.layer_table import print_layers, split_lines
from pipeline.page.numbers import NONE, three_digits


def _table(title: str) -> Table:
    """A table that fits 80 columns."""
    return Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1),
        collapse_padding=True,
    )


def print_verdict(record: Mapping[str, Any], console: Console) -> None:
    """The numbers of a verdict as a table."""
    table = _table("passed" if record["passed"] else "out of tolerance")
    table.add_column("output", overflow="fold")
    for column in ("max\n|Δ|", "mean\n|Δ|", "cosine\nmin", "PSNR min\ndB", "SQNR\ndB", "passed"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in record["comparison"].items():
        table.add_row(
            Text(name),
            f"{row['max_abs']:.3g}",
            f"{row['mean_abs']:.3g}",
            f"{row['cosine_min']:.6f}",
            f"{row['psnr_db']:.1f}",
            f"{row['sqnr_db']:.1f}",
            "yes" if row["passed"] else "no",
        )
    console.print(table)
    for note in record["notes"]:
        console.print(Text(f"Note: {note}"), highlight=False)
    if record["metric"] is not None:
        console.print(f"metric {record['metric']:.4f}, reference {record['reference_metric']:.4f}", highlight=False)
    if record["agreement"] is not None:
        console.print(f"same arg max on {record['agreement']:.2%} of the samples", highlight=False)


def print_timings(record: Mapping[str, Any], console: Console) -> None:
    """A table of latencies, with the protocol under it."""
    rows = record["timings"]
    with_device = any(row["device_ms"] is not None for row in rows)
    table = _table("")
    table.add_column("engine", overflow="fold")
    heads = ["batch", "p50\nms", "p90\nms", "p99\nms", "mean\nms", "samples\nper s", "stable"]
    energies = {(row["name"], row["batch_size"]): row["energy_mj"] for row in record["energies"]}
    with_energy = any(energy is not None for energy in energies.values())
    for head in heads + ["device\np50 ms"] * with_device + ["energy\nmJ"] * with_energy:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        latency, device = row["latency_ms"], row["device_ms"]
        cells = [str(row["batch_size"]), *(three_digits(latency[key]) for key in ("p50", "p90", "p99", "mean"))]
        cells += [f"{row['throughput_per_s']:,.0f}", "yes" if row["stable"] else "no"]
        cells += [NONE if device is None else three_digits(device["p50"])] * with_device
        energy = energies[row["name"], row["batch_size"]]
        cells += [NONE if energy is None else three_digits(energy)] * with_energy
        table.add_row(Text(row["name"]), *cells)
    console.print(table)
    for line in split_lines(record):
        console.print(Text(line))
    print_layers(record, console)
    for largest in record.get("largest_batches", ()):
        _print_largest(largest, console)
    for sentence in (record.get("power_modes") or {"sentences": ()})["sentences"]:
        console.print(Text(sentence))
    if together := record.get("together"):
        _print_together(together, console)
    console.print(Text(record["protocol"], style="dim"))


def _print_largest(largest: Mapping[str, Any], console: Console) -> None:
    """The batches that the search for the largest one tried, and what came of it."""
    table = _table("")
    table.add_column(largest["name"], overflow="fold")
    for column in ("batch", "ms", "interval", "samples\nper s", f"keeps\n{largest['bound']}"):
        table.add_column(column, justify="right", no_wrap=True)
    words = {"pass": "yes", "fail": "no", "not decided": "not decided"}
    for row in largest["tried"]:
        estimate, low, high = (
            NONE if row[key] is None else three_digits(row[key]) for key in ("estimate_ms", "low_ms", "high_ms")
        )
        per_s = f"{row['throughput_per_s']:,.0f}"
        table.add_row("", str(row["batch_size"]), estimate, f"{low} to {high}", per_s, words[row["outcome"]])
    console.print(table)
    console.print(Text(largest["sentence"]))


def _print_together(together: Mapping[str, Any], console: Console) -> None:
    """Each engine alone and beside the others."""
    table = _table(f"at once, in {together['run_in']}")
    table.add_column("engine", overflow="fold")
    heads = ("batch", "alone\np50 ms", "beside\np50 ms", "slow-\ndown", "interval", "alone\np99 ms", "beside\np99 ms")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in together["engines"]:
        alone, beside, ratio = row["alone_ms"], row["beside_ms"], row["slowdown"]
        cells = [three_digits(alone["p50"]), three_digits(beside["p50"]), f"{ratio['ratio']:.2f}"]
        cells += [f"{ratio['low']:.2f} to {ratio['high']:.2f}"]
        cells += [three_digits(alone["p99"]), three_digits(beside["p99"])]
        table.add_row(Text(row["name"]), str(row["batch_size"]), *cells)
    console.print(table)
    console.print(Text(together["sentence"]))
