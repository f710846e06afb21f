"""The gate: may this engine ship? Its budgets, its baselines, what is measured for them, and what it leaves behind."""
