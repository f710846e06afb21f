"""Verbs that make or look at models, samples and ranges; no engine is built or run."""
