"""Samples: from files, folders and functions to preprocessed batches that a model takes; nothing of ranges."""
