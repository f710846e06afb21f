"""The command line: arguments to calls, results to text; nothing is computed here."""
