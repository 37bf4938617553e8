"""One suite for each port: every implementation subclasses it and gives fixtures; see `ports.py`."""
