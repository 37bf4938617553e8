"""The outside world, one thing a file: the ports of `ports.py`, and what they are made of."""
