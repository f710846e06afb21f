"""The GPU below TensorRT: memory, streams, events and graphs; nothing of engines."""
