"""What is said of an engine when it is signed, and when a run signs."""
