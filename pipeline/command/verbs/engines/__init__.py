"""Verbs that build, run, validate or benchmark engines, and `doctor`, which reports which backends work."""
