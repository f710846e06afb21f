"""docs/nightly.md against the code: every key of the fleet file and of nightly.json, and no other."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import pytest

from pipeline.nightly.fleet import DeviceTable, Fleet, FleetFile, Night, read_fleet
from pipeline.nightly.record import SCHEMA_VERSION, Figures, LineRecord, NightRecord
from pipeline.source_files import ROOT
from pipeline.strict import names_in_file

PAGE = (ROOT / "docs/nightly.md").read_text()


def keys_below(heading: str) -> list[str]:
    """The keys in the first column of the first table after a text."""
    _, _, rest = PAGE.partition(heading)
    table = re.search(r"\n\|.*?\n(\n|$)", rest, re.DOTALL)
    assert table
    rows = table[0].strip().splitlines()[2:]
    return [key for row in rows for key in re.findall(r"`(\w+)`", row.split("|")[1])]


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("### [fleet]", Fleet),
        ("### [device.NAME]", DeviceTable),
        ("### [nightly]", Night),
        ("### nightly.json", NightRecord),
        ("each `line.json`:", LineRecord),
    ],
)
def test_every_key_stands_on_the_page(heading: str, kind: type[Any]) -> None:
    assert keys_below(heading) == names_in_file(kind)


def test_the_page_has_the_defaults_and_the_version() -> None:
    assert f"nightly.json, schema version {SCHEMA_VERSION}" in PAGE
    for kind in (Fleet, Night):
        for field in fields(kind):
            if field.default is not MISSING and field.default not in ((), "") and not is_dataclass(field.default):
                text = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
                words = text.strip("()',")
                assert re.search(rf"\| `{field.name}` \| `[\[\"]*{re.escape(words)}[\]\"]*` \|", PAGE), field.name
    assert all(f"`{field.name}`" in PAGE for field in fields(Figures))


def test_the_example_is_a_fleet_file(tmp_path: Any) -> None:
    example = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "fleet.toml").write_text(example)
    fleet: FleetFile = read_fleet(tmp_path / "fleet.toml")
    assert list(fleet.device) == ["here"]
