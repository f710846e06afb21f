"""`python -m pipeline`: the command, where no script was installed."""

from pipeline.cli import main

main()
