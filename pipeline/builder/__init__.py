"""What surrounds one engine build: retries, expected duration, what native INT8 is given."""
