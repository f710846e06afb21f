"""What is made from what, and where it is kept: the plan, the flow, the store and the command line."""

from pipeline import source_files as source_files  # First of all: it notes what is going to be loaded.

__version__ = "0.1.0"
