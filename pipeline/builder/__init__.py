"""What surrounds one engine build: retries, and what native INT8 is given; not the builder itself."""
