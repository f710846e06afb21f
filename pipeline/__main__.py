"""The command, also as `python -m pipeline`. Older Pythons can read this file, and no other."""

import gc
import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        f"trtforge: this is Python {sys.version_info[0]}.{sys.version_info[1]}, 3.10 is the oldest that works; on "
        "JetPack 5 scripts/build_on_jetson brings one, elsewhere make an environment with scripts/environment\n"
    )
    sys.exit(3)


NUM_NEW_OBJECTS = 100_000
"""So many, where Python's default is some hundreds, before it looks for circles among them: hundreds of modules and the
nodes of models are made at once, and of a command that reads both it saved a tenth of the time."""


def main() -> None:
    """Run the command."""
    gc.set_threshold(NUM_NEW_OBJECTS, 20, 20)
    from pipeline.machine.signals import stopped_at_once

    with stopped_at_once():
        import pipeline.errors  # noqa: F401  # What the command needs to end in a sentence.
        from pipeline.command.cli import main as command
    command()


if __name__ == "__main__":
    main()
