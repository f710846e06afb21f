"""The command `trtforge`; its verbs are the stages. Nothing heavy is loaded before a verb is called."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from pipeline import __version__

VERBS = {
    "run": "Run a whole plan: every variant built, validated, timed, and a report.",
    "export": "",
    "calibrate": "",
    "cast": "",
    "quantize": "",
    "build": "",
    "infer": "",
    "validate": "",
    "benchmark": "",
    "report": "",
    "show": "Walk a result's recipes back to the trained network.",
    "doctor": "Which backends work here, with versions; why the others do not, and what installs them.",
}
"""Verb -> its line in `--help`; empty for a stage, whose line is the first of its own file."""

WHOLE_RUNS = ("run", "report", "show", "doctor")
"""The verbs that `pipeline.runs` holds."""

INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""


class Verbs(click.Group):
    """A group that loads a verb's code only when the verb is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of a run."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command."""
        if cmd_name not in VERBS:
            return None
        module = "pipeline.runs" if cmd_name in WHOLE_RUNS else "pipeline.commands"
        command = getattr(importlib.import_module(module), cmd_name)
        return command if isinstance(command, click.Command) else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with the nearest verb for a typo."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(args[0], VERBS, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else f"; verbs: {', '.join(VERBS)}"
            raise click.UsageError(f"no such verb '{args[0]}'{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs and their lines, read from the sources without running them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, line or _first_line(name)) for name, line in VERBS.items()])


def _first_line(stage: str) -> str:
    with (Path(__file__).parent / "stages" / f"{stage}.py").open(encoding="utf-8") as source:
        return source.readline().strip().strip('"')


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="trtforge")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is done.")
def trtforge(verbose: bool) -> None:
    """From a trained network to a validated, timed inference engine.

    Each verb takes a plan (PLAN.toml), or works directly on files. Results go to stdout, everything else to stderr.

    Exit status: 0 done; 2 the plan, the command or the data is wrong; 3 this machine lacks something; 4 a tool
    below failed on this model; 5 it ran, and accuracy or latency is out of bound; 130 interrupted.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="trtforge: %(message)s",
        stream=sys.stderr,
        force=True,
    )


def main() -> NoReturn:
    """Run the command; turn errors into one sentence and an exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(_status())


def _status() -> int:
    from pipeline.errors import EXIT_STATUS, exit_status

    try:
        trtforge.main(standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("trtforge: interrupted; what was finished is kept, the same command goes on from there", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except tuple(EXIT_STATUS) as error:
        click.echo(f"trtforge: {error}", err=True)
        return exit_status(error)
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
