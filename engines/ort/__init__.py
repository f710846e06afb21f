"""What is peculiar to ONNX Runtime: sessions, providers, blocked layout, profile; the backends are in `backends/`."""
