"""The nightly job: many plans on several devices, made where something changed, judged, and reported in the morning."""
