"""Precision written into a model: scales, Q/DQ placement, FP16 types; nothing of how ranges were found."""
