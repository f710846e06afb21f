"""Engines that passed, written for the programs that serve them: Triton and DeepStream. Nothing is built here."""
