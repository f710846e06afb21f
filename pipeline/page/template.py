"""A page: its template, its filters, its style sheet."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from engines.precision import rank
from pipeline.errors import Unavailable
from pipeline.machine.identity import Machine
from pipeline.page import numbers
from pipeline.page.svg import SERIES

if TYPE_CHECKING:
    from jinja2 import Template


NEEDED = ("jinja2", "matplotlib")


def check_drawable(what: str) -> None:
    """Raise Unavailable unless a page can be drawn here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Unavailable(f"{what}: needs {' and '.join(missing)}; pip install 'trtforge[report]'")


def template_named(file: str) -> Template:
    """A page's template, with the filters that print numbers."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    loader = FunctionLoader(lambda name: (files("pipeline") / name).read_text(encoding="utf-8"))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=loader
    )
    environment.filters |= {
        "ms": numbers.three_digits,
        "size": numbers.size_text,
        "times": numbers.times_text,
        "rate": numbers.rate_text,
        "share": numbers.share_text,
        "db": numbers.db_text,
        "rank": lambda precision: rank(precision) % len(SERIES),
        "finite": lambda value, form: "not finite" if value is None else form % value,
        "trusted": Markup,  # For the style and the pictures alone: matplotlib has escaped the texts in them.
    }
    return environment.get_template(file)


def style() -> str:
    """The style sheet that all pages share."""
    return (files("pipeline") / "page/page.css").read_text(encoding="utf-8")


def machine_rows(machine: Machine) -> list[tuple[str, str]]:
    """What the machine tells of itself, without what it does not tell."""
    rows = [
        ("Board", machine.board),
        ("CPU", f"{machine.cpu}; cores usable: {machine.num_cores}"),
        ("CPU quota", f"{machine.cpu_quota_cores:g} cores" if machine.cpu_quota_cores else ""),
        ("Instruction sets", " ".join(machine.isa)),
        ("Memory", f"{machine.memory_mib:,} MiB" if machine.memory_mib else ""),
        ("Frequency governor", machine.governor),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}, {gpu.memory_mib:,} MiB") for gpu in machine.gpus),
        ("Jetson release", machine.jetson_release),
        ("Power mode", machine.power_mode),
        ("System", f"{machine.system} {machine.kernel}, {machine.architecture}"),
    ]
    return [(name, value) for name, value in rows if value]
