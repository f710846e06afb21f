"""Weights that suit small numbers better, in FP32: some of them zero, or alike from channel to channel."""
