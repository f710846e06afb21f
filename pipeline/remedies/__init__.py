"""What would hold where INT8 is out of bounds: other ways to make it, tried as the plan's own was, and judged so."""
