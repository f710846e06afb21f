"""One technique after another on a user's network, each held to the plan's bounds, until one holds them all."""
