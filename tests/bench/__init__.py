"""Measurements, run by hand; a short test of each keeps it running."""
