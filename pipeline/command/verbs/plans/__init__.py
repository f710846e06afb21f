"""Verbs over whole plans and their results."""
