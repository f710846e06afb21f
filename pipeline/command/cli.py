"""The command `trtforge`; its verbs are the stages. Nothing heavy is loaded before a verb is called."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from pipeline import __version__
from pipeline.machine.signals import stopped_at_once
from pipeline.page.until_closed import until_closed
from pipeline.spelling import echo

if TYPE_CHECKING:
    from pipeline.command.outcomes import VerbOutcome

VERBS_FOLDER = Path(__file__).parent / "verbs"
ROOMS = {"plans": "Whole plans", "models": "Models and samples", "engines": "Engines"}
"""Folder of verbs -> its heading in `--help`."""
ORDER = (
    "init", "run", "advise", "nightly", "census", "why", "pack", "report", "show", "store",
    "export", "support", "lint", "convert", "prune", "calibrate", "ranges", "cast", "tune", "quantize", "ptq",
    "tolerate",
    "build", "refit", "infer", "validate", "bisect", "benchmark", "gate", "baseline", "sign", "verify", "deliver",
    "doctor", "completion",
)  # fmt: skip
"""How `--help` lists the verbs: in the order of a run. One that is not named here comes after those of its folder."""

INTERRUPTED, TERMINATED = 130, 143
"""128 + SIGINT and 128 + SIGTERM, as shells have it."""


@functools.cache
def verb_files() -> dict[str, Path]:
    """Verb -> its file, ``verbs/<room>/<verb>.py``, in the order of ``ORDER`` within each room."""
    files = (file for room in ROOMS for file in (VERBS_FOLDER / room).glob("*.py") if file.stem[0] not in "._")
    rooms = list(ROOMS)

    def place(file: Path) -> tuple[int, int, str]:
        order = ORDER.index(file.stem) if file.stem in ORDER else len(ORDER)
        return rooms.index(file.parent.name), order, file.stem

    return {file.stem: file for file in sorted(files, key=place)}


def help_line(file: Path) -> str:
    """A verb's line in `--help`: the first line of its file, which is not loaded for that."""
    with file.open(encoding="utf-8") as lines:
        return lines.readline().strip().strip('"').rstrip(".")


class Verbs(click.Group):
    """A group that loads a verb's code only when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of a run."""
        return list(verb_files())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command."""
        if cmd_name not in verb_files():
            return None
        room = verb_files()[cmd_name].parent.name
        with stopped_at_once():
            module = importlib.import_module(f"pipeline.command.verbs.{room}.{cmd_name}")
        command = getattr(module, cmd_name)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest verb for a typo."""
        verbs = list(verb_files())
        if args and args[0] not in verbs and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], verbs, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else f"; verbs: {', '.join(verbs)}"
            raise click.UsageError(f"no such verb '{args[0]}'{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and their lines, without loading any of them."""
        for room, heading in ROOMS.items():
            with formatter.section(heading):
                files = (file for file in verb_files().values() if file.parent.name == room)
                formatter.write_dl([(file.stem, help_line(file)) for file in files])


class _OnStderr(logging.Handler):
    """Writes to what stderr is at the moment: a line of progress on a terminal stays below what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """One message."""
        echo(self.format(record), err=True)


@click.group(
    cls=Verbs,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="trtforge")
@click.option("-v", "--verbose", is_flag=True, help="Report progress on stderr.")
def trtforge(verbose: bool) -> None:
    """From a trained network to a validated and benchmarked inference engine.

    Most verbs take a plan (PLAN.toml) or work directly on files; see `trtforge VERB --help`. Results are written to
    stdout, messages to stderr.

    \b
    Exit status:
      0    done
      2    error in the plan, the command or the data
      3    this machine lacks something that is required
      4    an underlying tool failed on this model
      5    accuracy or latency is out of bounds
      6    accuracy or latency could not be decided on this machine
      130  interrupted
      143  terminated
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="trtforge: %(message)s",
        handlers=[_OnStderr()],
        force=True,
    )


@trtforge.result_callback()
def _tell(outcome: VerbOutcome | None, **_options: object) -> None:
    """What a verb returns is printed, and ends the command as it says."""
    from pipeline.command import outcomes

    if outcome is not None:
        outcomes.tell(outcome)


def main() -> NoReturn:
    """Run the command, and end the process with its exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.stdout, sys.stderr = until_closed(sys.stdout), until_closed(sys.stderr)
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: Sequence[str]) -> int:
    """Run the command with these arguments; errors become one sentence on stderr and an exit status."""
    from pipeline.errors import EXIT_STATUS, as_sentences, exit_status

    if "_TRTFORGE_COMPLETE" in os.environ:
        from pipeline.command.completion import add_shells

        add_shells()
    try:
        with as_sentences():
            status = trtforge.main(list(arguments), prog_name="trtforge", standalone_mode=False)
    except click.ClickException as error:
        message = io.StringIO()
        error.show(message)
        echo(message.getvalue().rstrip("\n"), err=True)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        echo("trtforge: interrupted; no incomplete results are left, a plan continues from what was finished", err=True)
        return TERMINATED if isinstance(stop.__cause__ or stop, Terminated) else INTERRUPTED
    except tuple(EXIT_STATUS) as error:
        echo(f"trtforge: {error}", err=True)
        return exit_status(error)
    return status if isinstance(status, int) else 0  # That of a verb which ended by click's Exit.


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    main()
