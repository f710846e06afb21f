"""Every page of the documentation: commands, plans and Python are parsed by what would read them, links lead on."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import click
import pytest

from pipeline.command.cli import ROOMS, help_line, trtforge, verb_files
from pipeline.nightly.fleet import read_fleet
from pipeline.plan import plan_from_text, tomllib

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
"""Also within an item of a list."""
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def short(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(text: str, *languages: str) -> list[str]:
    return [dedent(block) for language, block in BLOCK.findall(text) if language in languages]


def blocks(page: Path, *languages: str) -> list[str]:
    return blocks_of(page.read_text(encoding="utf-8"), *languages)


def commands(text: str) -> Iterator[str]:
    """What is typed, of a page's text: lines after `$ ` in console blocks, each of sh blocks, a bash block as one."""
    for language, block in BLOCK.findall(text):
        lines = dedent(block).replace("\\\n", " ").splitlines()
        if language == "console":
            yield from (line.removeprefix("$ ") for line in lines if line.startswith("$ "))
        elif language == "sh":
            yield from filter(None, lines)
        elif language == "bash":
            yield "\n".join(lines)


WITH_COMMANDS = [(short(page), line) for page in PAGES for line in commands(page.read_text(encoding="utf-8"))]


def parse(words: list[str]) -> None:
    """Raise click's error if the command line could not be begun."""
    command: click.Command = trtforge
    context = click.Context(trtforge, info_name="trtforge", **trtforge.context_settings)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None, name
        command, context = found, found.make_context(name, list(words), parent=context)
        words = [*context._protected_args, *context.args] if isinstance(command, click.Group) else []


@pytest.mark.parametrize(("page", "line"), WITH_COMMANDS)
def test_a_command_is_parsed_by_the_real_parser(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    name = Path(words[0]).name if words else ""
    if name == "trtforge":
        parse(words[1 : words.index(">")] if ">" in words else words[1:])
    elif words and words[0].startswith("scripts/"):
        assert os.access(ROOT / words[0], os.X_OK)


def test_a_wrong_command_would_be_noticed() -> None:
    with pytest.raises(click.UsageError, match="no such verb"):
        parse(["calibarte", "model.onnx"])
    with pytest.raises(click.NoSuchOption):
        parse(["ranges", "show", "--nothing", "ranges"])
    assert {line.split()[1] for _, line in WITH_COMMANDS if line.startswith("trtforge ")} >= {"run", "ranges", "store"}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")], ids=short)
def test_plans_are_read_by_the_plan_reader(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "toml"):
        tables = tomllib.loads(block)
        if "fleet" in tables:
            (tmp_path / "plan.toml").write_text('[model]\nsource = "m.onnx"\n[data]\nevaluation = { path = "d.npz" }\n')
            for name in ("ca.pem", "hub.pem", "hub.key"):  # Of a fleet under TLS.
                (tmp_path / name).touch(mode=0o600)
            (tmp_path / "fleet.toml").write_text(block.replace("/etc/trtforge/", f"{tmp_path}/"))
            read_fleet(tmp_path / "fleet.toml")
            continue
        head = "" if "model" in tables else '[model]\nsource = "model.onnx"\n'
        for name in ("calibration", "evaluation"):
            head += "" if name in tables.get("data", {}) else f'[data.{name}]\npath = "{name}.npz"\n'
        text = head + block
        if "detector" in tables.get("data", {}):
            text = text.replace("[data.calibration]", '[data]\nmetric = "map"\n[data.calibration]', 1)
        plan_from_text(text, tmp_path / "plan.toml")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=short)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, short(page), "exec")


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "benchmarks" / "results").glob("*.md"))], ids=short)
def test_links_lead_to_files(page: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8"))]
    files = [target for target in targets if target and "://" not in target]
    assert [target for target in files if not (page.parent / target).exists()] == []


def test_the_commands_page_has_every_verb() -> None:
    page = (ROOT / "docs" / "reference" / "command.md").read_text(encoding="utf-8")
    rows = [
        f"## {heading}\n\n| verb | |\n|---|---|\n"
        + "".join(f"| `{f.stem}` | {help_line(f)} |\n" for f in verb_files().values() if f.parent.name == room)
        for room, heading in ROOMS.items()
    ]
    assert [row for row in rows if row not in page] == []


def test_every_page_is_in_the_list() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    pages = [page for page in PAGES if page.parent != ROOT and page.name != "index.md"]
    assert [short(page) for page in pages if f"({page.relative_to(ROOT / 'docs').as_posix()})" not in index] == []
