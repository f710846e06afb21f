"""What networks are for, and how good their answers are: classes, values, areas, faces, objects; no plan, no engine."""
