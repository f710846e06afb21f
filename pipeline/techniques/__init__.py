"""The techniques that make a network small and fast, what is claimed of each, and the record of trying them."""
