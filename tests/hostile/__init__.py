"""Hostile and broken input from every side: an error that says what is wrong, or the right result."""
