"""The report of a run: table, JSON and page; it measures nothing."""
