"""Verbs over whole plans and their results; what single stages do is done by the other verbs."""
