"""The fleet file: which plans on which devices, and what is wrong with it in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.nightly.fleet import lines_of, read_fleet
from tests.pipeline.nightly.fleets import FLEET, fleet_of


def test_every_plan_on_every_device_that_takes_it(plan: Path) -> None:
    more = (
        '[device.small]\nplans = ["b*"]\n[device.small.set]\ncalibrate.method = "mse"\nbuild."optimization_level" = 2\n'
    )
    fleet = read_fleet(fleet_of(plan, "a", "b", text=f"{FLEET}{more}"))
    lines = lines_of(fleet)
    assert [line.name for line in lines] == ["a.here", "b.here", "b.small"]
    assert lines[2].settings == ('calibrate.method="mse"', "build.optimization_level=2")
    small = lines[2].plan()
    assert (small.calibrate.method, small.settings) == ("mse", lines[2].settings)
    assert lines[1].plan().calibrate.method == "minmax", "as the plan has it"


def test_settings_are_one_line_of_toml_each(plan: Path) -> None:
    text = FLEET + (
        '[device.b.set]\nmodel.inputs."image:0" = { min = [1, 2], opt = [1, 2], max = [3, 4] }\n'
        'gate.budgets = ["size_mib <= 1", "p50_ms <= 2"]\nbuild.fp16 = true\n'
    )
    *_, device = read_fleet(fleet_of(plan, "a", text=text)).device.values()
    assert device.settings() == (
        'model.inputs."image:0".min=[1, 2]',
        'model.inputs."image:0".opt=[1, 2]',
        'model.inputs."image:0".max=[3, 4]',
        'gate.budgets=["size_mib <= 1", "p50_ms <= 2"]',
        "build.fp16=true",
    )


def test_a_plan_that_is_called_otherwise_gives_its_own_name(plan: Path) -> None:
    file = fleet_of(plan, "a")
    (file.parent / "a/plan.toml").rename(file.parent / "a/yolo.toml")
    file.write_text(FLEET.replace("*/plan.toml", "a/yolo.toml"))
    assert [line.name for line in lines_of(read_fleet(file))] == ["yolo.here"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[fleet]", "[flet]", "the table [fleet] is missing"),
        ("plans =", "plan =", "[fleet] unknown key 'plan'; did you mean 'plans'?"),
        ('["*/plan.toml"]', "[]", "[fleet] plans is empty"),
        ("*/plan.toml", "*/plam.toml", "[fleet] plans: '*/plam.toml' matches no file in "),
        ('"*/plan.toml"', '""', "[fleet] plans: '' is no pattern"),
        ('"*/plan.toml"', '"/"', "[fleet] plans: '/' is no pattern"),
        ('"*/plan.toml"', '"*"', "[fleet] plans: '*' matches no file in "),
        ("*/plan.toml", "/no/*/plan.toml", "[fleet] plans: '/no/*/plan.toml' matches no file"),
        ("[nightly]", "jobs = 0\n[nightly]", "jobs is 0"),
        ("[nightly]", '[device.a]\nplans = ["z*"]\n[nightly]', "[device.a] plans: 'z*' matches no model"),
        ("[device.here.", "[device.'a b'.", "[device.a b] is no name for a device"),
        ("[nightly]", 'until = "run"\n[nightly]', "until"),
    ],
)
def test_what_is_wrong_is_said_with_the_key(plan: Path, old: str, new: str, sentence: str) -> None:
    assert old in FLEET
    file = fleet_of(plan, "a", text=FLEET.replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(sentence)) as caught:
        lines_of(read_fleet(file))
    assert str(file) in str(caught.value)


def test_a_pattern_may_be_an_absolute_path(plan: Path) -> None:
    file = fleet_of(plan, "a", "b")
    file.write_text(FLEET.replace("*/plan.toml", f"{file.parent.resolve()}/*/plan.toml"))
    assert [line.name for line in lines_of(read_fleet(file))] == ["a.here", "b.here"]


def test_two_plans_of_one_name_are_an_error_with_both(plan: Path) -> None:
    file = fleet_of(plan, "a", "more/a", text=FLEET.replace('"*/plan.toml"', '"*/plan.toml", "more/*/plan.toml"'))
    with pytest.raises(ConfigError, match=r"a/plan\.toml and .*more/a/plan\.toml are both named 'a'"):
        lines_of(read_fleet(file))


def test_a_setting_that_no_plan_has_is_said_of_the_plan_with_the_setting(plan: Path) -> None:
    file = fleet_of(plan, "a", text=f"{FLEET}[device.here.set.build]\nworkspace = 3\n")
    (line,) = lines_of(read_fleet(file))
    with pytest.raises(ConfigError, match=r"plan\.toml with .*--set build\.workspace=3: \[build\] unknown key"):
        line.plan()


WORKERS = '[fleet]\nplans = ["*/plan.toml"]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('scheduler = "tls://hub:8786"', r"\[fleet\] tls ca and cert and key: missing"),
        ('scheduler = "tcp://hub:8786"', "whoever reaches it could run commands on all workers"),
        ('scheduler = "tcp://127.0.0.1:8786"', r"\[fleet\] depot: is missing"),
        ('depot = "file:///mnt"', r"\[fleet\] depot: needs \[fleet\] scheduler; name it"),
        ('tls = { ca = "ca.pem" }', r"\[fleet\] tls: needs \[fleet\] scheduler; name it"),
        ("retries = -1", "retries"),
        ('[device.orin]\nexpects = { tensorrt = "10" }', r"\[device.orin\] expects: has an effect only with"),
        ('scheduler = "tcp://127.0.0.1:1"\ndepot = "file:///x"\n[device.orin]\non = "orin"', "each device has `on`"),
        ('scheduler = "tcp://127.0.0.1:1"\ndepot = "file:///x"\nuntil = "validate"', "a worker builds or gates"),
        ('scheduler = "tcp://127.0.0.1:1"\ndepot = "file:///x"\n[device.a]\nexpects = { tensorr = "1" }', "tensorrt"),
    ],
)
def test_what_a_scheduler_needs(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "fleet.toml").write_text(f"{WORKERS}{text}\n")
    with pytest.raises(ConfigError, match=sentence):
        read_fleet(tmp_path / "fleet.toml")


def test_a_device_is_reached_by_ssh_or_by_the_scheduler(plan: Path) -> None:
    text = f'{WORKERS}scheduler = "tcp://127.0.0.1:1"\ndepot = "file:///x"\n[device.nano]\non = "nano"\n[device.orin]\n'
    lines = {line.device: line for line in lines_of(read_fleet(fleet_of(plan, "a", text=text)))}
    assert [(line.on, line.is_scheduled, line.is_here) for line in lines.values()] == [
        ("nano", False, False),
        ("", True, False),
    ]
