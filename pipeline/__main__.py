"""`python -m pipeline`: the command, where no script was installed. Older Pythons can read this file, and no other."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.stderr.write(
        f"trtforge: this is Python {sys.version_info[0]}.{sys.version_info[1]}, 3.10 is the oldest that works; on "
        "JetPack 5 see docs/jetson.md, elsewhere make an environment with scripts/environment\n"
    )
    sys.exit(3)

from pipeline.command.cli import main

main()
