"""What leaves this machine: a plan's first half in one file; nothing is computed here."""
