"""Container layouts as data: every byte of a file but its tensors' own, and its size, before any data."""
