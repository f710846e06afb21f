"""Below the table of `benchmark`: where the queries' time went on the device, and in which layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.latency.device_times import MOST_LAYERS
from pipeline.page.numbers import three_digits


def split_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each engine and batch size whose backend tells the parts of a query, and each one's memory."""
    for row in record["timings"]:
        if row["split_ms"] is not None:
            parts = {name: three_digits(value) for name, value in row["split_ms"].items()}
            yield (
                f"{row['name']} at batch {row['batch_size']}, medians: {parts['host_to_device_ms']} ms to the device, "
                f"{parts['compute_ms']} ms computing, {parts['device_to_host_ms']} ms back; enqueueing took the "
                f"host {parts['enqueue_ms']} ms."
            )
    for name, facts in record["runners"].items():
        if facts["device_memory_mib"] is not None:
            yield f"{name} takes {facts['device_memory_mib']:.0f} MiB of device memory."


def note_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What the runners could not do, and engines whose layers are not told."""
    for name, facts in record["runners"].items():
        yield from (f"{name}: {note}" for note in facts["notes"])
    for name, run in record["layers"].items():
        if not run["times"]["layers"]:
            yield f"{name}: its backend does not report layer times"


def print_layers(record: Mapping[str, Any], console: Console) -> None:
    """The slowest layers of each engine."""
    for name, run in record["layers"].items():
        if run["times"]["layers"]:
            console.print(_table(name, run))


def _table(name: str, run: Mapping[str, Any]) -> Table:
    layers = sorted(run["times"]["layers"], key=lambda layer: -float(layer["median_ms"]))
    shown = f", the {MOST_LAYERS} slowest of {len(layers)}" if len(layers) > MOST_LAYERS else ""
    title = f"{name} at batch {run['batch_size']}: layers{shown} (median of {run['num_runs']} runs)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("layer", overflow="fold")
    table.add_column("type", no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    table.add_column("share\n%", justify="right", no_wrap=True)
    table.add_column("nodes of the model", overflow="fold")
    for row in layers[:MOST_LAYERS]:
        layer = row["layer"]
        cells = (layer["precision"], three_digits(row["median_ms"]), f"{100 * row['share']:.1f}")
        table.add_row(Text(layer["name"]), *cells, Text(", ".join(layer["nodes"])))
    return table
