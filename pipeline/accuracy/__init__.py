"""How right an engine answers: metrics, comparison, tolerances, bisection; nothing is timed."""
