"""This machine: identity, sensors, memory, packages, child processes, progress; nothing of models."""
