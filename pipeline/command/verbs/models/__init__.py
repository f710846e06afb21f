"""Verbs that make or inspect models, samples and ranges; no engine is built or run."""
