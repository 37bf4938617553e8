"""Kills and faults without number: `python -m tests.soak`; a short form is a plain test."""
