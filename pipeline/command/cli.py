"""The command `trtforge`; its verbs are the stages. Nothing heavy is loaded before a verb is called."""

from __future__ import annotations

import importlib
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from pipeline import __version__

VERBS = {
    "run": "A whole plan: build, validate and time every variant; a report",
    "export": "SavedModel, Keras file or ONNX -> checked FP32 ONNX",
    "lint": "Are calibration samples like the model's own, and representative",
    "calibrate": "FP32 ONNX and samples -> each tensor's range",
    "cast": "FP32 ONNX and ranges -> FP16 ONNX",
    "quantize": "FP32 ONNX and ranges -> INT8 ONNX (Q/DQ nodes)",
    "tolerate": "FP32 ONNX and samples -> how far a sound engine may be off",
    "build": "ONNX -> engine",
    "infer": "Engine and samples -> its answers",
    "validate": "Judge an engine's answers against the FP32 model's",
    "bisect": "The layer at which a model in reduced precision goes wrong",
    "benchmark": "Time engines against each other",
    "gate": "May this engine ship? Budgets, beside a baseline",
    "baseline": "Keep what passed its gate, for later ones",
    "ranges": "Show and merge ranges; to and from TensorRT's calibration cache",
    "pack": "A plan's models, samples and answers in one file, for a device",
    "report": "Print and draw a run's report again",
    "show": "What a result was made from, back to the trained network",
    "doctor": "Which backends work here; what installs the others",
}
"""Verb -> its line in `--help`."""

MODULES = {
    **dict.fromkeys(("run", "pack", "report", "show", "doctor"), "pipeline.runs"),
    **dict.fromkeys(("calibrate", "cast", "quantize"), "pipeline.precision"),
    **dict.fromkeys(("gate", "baseline"), "pipeline.gate.verbs"),
    "lint": "pipeline.linting",
    "ranges": "pipeline.command.verbs.models.ranges",
}
"""Verb -> the module that holds it; the others are in `pipeline.commands`."""

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
        module = importlib.import_module(MODULES.get(cmd_name, "pipeline.commands"))
        command = getattr(module, cmd_name)
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
        """The verbs and their lines, without loading any of them."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="trtforge")
@click.option("-v", "--verbose", is_flag=True, help="Say on stderr what is done.")
def trtforge(verbose: bool) -> None:
    """From a trained network to a validated, timed inference engine.

    Each verb takes a plan (PLAN.toml), or works directly on files; `trtforge VERB --help` tells how. Results go to
    stdout, everything else to stderr.

    Exit status: 0 done; 2 the plan, the command or the data is wrong; 3 this machine lacks something; 4 a tool
    below failed on this model; 5 it ran, and accuracy or latency is out of bound; 6 it ran,
    and cannot be decided here; 130 interrupted.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="trtforge: %(message)s",
        stream=sys.stderr,
        force=True,
    )


def main() -> NoReturn:
    """Run the command, and end the process with its exit status."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(status_of(sys.argv[1:]))


def status_of(arguments: Sequence[str]) -> int:
    """Run the command with these arguments; errors become one sentence on stderr and an exit status."""
    from pipeline.errors import EXIT_STATUS, FULL_DISK, Unavailable, exit_status

    try:
        trtforge.main(list(arguments), prog_name="trtforge", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("trtforge: interrupted; nothing half made is left, a plan goes on from what was finished", err=True)
        return INTERRUPTED
    except tuple(EXIT_STATUS) as error:
        click.echo(f"trtforge: {error}", err=True)
        return exit_status(error)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        click.echo(f"trtforge: nothing more can be written ({error.strerror}); free some room and run again", err=True)
        return exit_status(Unavailable())
    return 0


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
