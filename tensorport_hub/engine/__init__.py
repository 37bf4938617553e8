"""The engine: all threads, the memory budget, ordering. See `run`."""

from tensorport_hub.engine.run import Outcome, run

__all__ = ["Outcome", "run"]
