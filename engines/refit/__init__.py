"""New weights for an engine that was built: what of a network is graph and what is weights, and TensorRT's refitter."""
