"""Bytes, facts and numbers: no network, no files, no clock, no logging."""
