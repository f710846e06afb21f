"""What rounding does to a model's answers, and where a model goes wrong; it writes no model for users."""
