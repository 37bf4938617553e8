"""What the CAS says no to.

`Refused` is raised by everything that reads a client's bytes (xorbs, shards, hashes, ranges); its text is
the body of the 400 answer: what differs, in which object, expected X, got Y. Nothing else leaves a reader,
so a malformed upload can never end as a 500.
"""

from __future__ import annotations


class Refused(ValueError):
    """A client's bytes are malformed or do not have the content they claim."""
