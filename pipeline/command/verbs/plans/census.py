"""List the workers of a fleet, and why one is not used."""

from __future__ import annotations

from pathlib import Path

import click

from pipeline.errors import ConfigError, Unavailable
from pipeline.nightly.fleet import read_fleet
from pipeline.spelling import echo, table_console
from pipeline.workers.census import DeviceState
from pipeline.workers.census import census as census_of
from pipeline.workers.depot import Depot
from pipeline.workers.scheduler import connected


@click.command()
@click.argument("fleet", type=Path)
def census(fleet: Path) -> None:
    """Ask the workers of the scheduler in FLEET.toml who they are. Nothing is sent, and nothing is made.

    Exit status 3 if a device has no worker, or one that runs another version of trtforge or is not as the fleet file
    expects it.
    """
    fleet_file = read_fleet(fleet)
    address = fleet_file.scheduler()
    if address is None:
        raise ConfigError(f"{fleet}: has no [fleet] scheduler, so that there is nobody to ask; name one")
    devices = {name: device.expects for name, device in fleet_file.device.items() if not device.on}
    Depot(fleet_file.fleet.depot).check()
    with connected(address) as hub:
        states = census_of(hub, devices)
    _print(states)
    refusals = [state.refusal for state in states.values() if state.refusal]
    for refusal in refusals[:-1]:
        echo(f"trtforge: {refusal}", err=True)
    if refusals:
        raise Unavailable(refusals[-1])


def _print(states: dict[str, DeviceState]) -> None:
    from rich.table import Table

    table = Table()
    for heading in ("device", "worker", "trtforge", "TensorRT", "power mode", "free GiB", "machine"):
        table.add_column(heading, justify="right" if heading == "free GiB" else "left")
    for state in states.values():
        for worker in state.workers:
            info = worker.info
            cells = ("?", "?", "?", "?", worker.refusal)
            if info is not None:
                free = f"{info.free_mib / 1024:.1f}"
                version = f"{info.trtforge} {info.source[:12]}"
                cells = (version, info.tensorrt or "–", info.power_mode or "–", free, info.describes)
            table.add_row(state.device, worker.name, *cells)
    table_console().print(table)
