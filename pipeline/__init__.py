"""What is made from what, and where it is kept: the plan, the flow, the store and the command line."""

__version__ = "0.1.0"
