"""What to do with measured variants: which to ship, which precision pays; it measures nothing."""
