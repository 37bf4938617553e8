"""The engine: all threads, the memory budget, ordering. See `run`."""

from tensorport_hub.engine.ledger import Outcome
from tensorport_hub.engine.run import run

__all__ = ["Outcome", "run"]
