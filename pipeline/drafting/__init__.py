"""A first plan for a network and its data: what both tell is written down, what they do not tell is asked."""
