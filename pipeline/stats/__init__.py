"""Intervals, bootstrap and proportions: statistics that know nothing of engines or latencies."""
