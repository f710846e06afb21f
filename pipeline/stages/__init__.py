"""One file per stage. A stage is a frozen dataclass: its fields are its options, its call is its contract."""
