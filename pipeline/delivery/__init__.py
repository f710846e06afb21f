"""Engines that passed, written for what serves them: Triton, DeepStream, a program in C++. Nothing is built here."""
