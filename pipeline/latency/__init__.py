"""How fast an engine answers: scenarios, measurement, intervals, energy; no budget is judged."""
