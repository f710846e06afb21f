"""Verbs that build, run, judge or time engines, and `doctor`, which says which engines can."""
