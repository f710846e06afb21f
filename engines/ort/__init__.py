"""What is peculiar to ONNX Runtime: its blocked layout and its profile; the backend is in `engines/backends/`."""
