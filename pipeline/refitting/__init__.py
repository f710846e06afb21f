"""New weights for an engine of the same graph: the stage, and which engine of a store it begins with."""
