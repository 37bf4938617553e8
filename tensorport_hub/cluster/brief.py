"""What coordinator and workers tell each other: frozen, picklable, and no secret in any of it.

A *brief* goes to each worker process once: the plan, where its bytes come from and go to, and the limits. An
*assignment* is one share of the plan, tried once. While it is carried out the worker *tells* what is finished
and what happened; at the end it says all of it again, so that nothing hangs on a message that was lost.
"""

from __future__ import annotations

import json
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from tensorport_hub.core.plan import Plan, dumps
from tensorport_hub.core.progress import Entry, MadeFile
from tensorport_hub.core.strips import Strip
from tensorport_hub.job import Job
from tensorport_hub.limits import Limits
from tensorport_hub.ports import Event

Item = Entry | Event
"""Something that is finished, or a remark worth passing on."""


@dataclass(frozen=True)
class Brief:
    """What every worker of a run must know.

    Attributes:
        run: names this very run, and no other.
        packed: the plan's JSON, compressed.
        folder: where the source is, unless it is the plan's repository; each worker must see the same files.
        stamp: the state of that folder.
        endpoint: the Hub.
        by_xet: its files are read from Xet storage, where they lie there.
        destination: the repository whose storage the bytes go to.
        transfer: `auto`, `xet` or `lfs`.
        limits: of each worker process, as is `max_disk`, in bytes.
    """

    run: str
    packed: bytes
    folder: str | None
    stamp: str
    endpoint: str
    by_xet: bool
    destination: str
    transfer: str
    limits: Limits
    max_disk: int

    @classmethod
    def of(cls, job: Job) -> Brief:
        """The brief of a job that publishes to the Hub."""
        packed = zlib.compress(dumps(job.plan.to_json()), 6)
        publication = job.publication
        return cls(
            secrets.token_hex(8),
            packed,
            job.folder,
            job.source.stamp,
            job.client.endpoint,
            job.by_xet,
            job.destination.name,
            publication.transfer,
            job.limits,
            publication.max_disk,
        )

    @property
    def plan(self) -> Plan:
        """The plan; unpacked once a process."""
        return _unpacked(self.packed)


@lru_cache(maxsize=1)
def _unpacked(packed: bytes) -> Plan:
    return Plan.from_json(json.loads(zlib.decompress(packed)))


@dataclass(frozen=True)
class Assignment:
    """A share of the plan for one worker.

    Attributes:
        number: no other try, of this share or another, has it.
        name: of the share.
        files: paths of the source files to walk.
        made: what the Hub's storage holds of the share: it is compared, but not written again.
        windows: window of the account -> how many requests of it this worker may make in how many seconds.
    """

    number: int
    name: str
    files: tuple[str, ...]
    made: tuple[MadeFile, ...]
    windows: Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Told:
    """News of an assignment under way.

    Attributes:
        at: how many items were told before.
        read, written: bytes so far.
    """

    number: int
    at: int
    items: tuple[Item, ...]
    read: int
    written: int


@dataclass(frozen=True)
class Ended:
    """An assignment that was carried out.

    Attributes:
        told: all of it, from the first item.
        readings: CRC-32 of what one share reads of another one's files: source file, strip, CRC.
        memory: peak resident bytes of the worker's process so far, where the system tells.
    """

    told: Told
    readings: tuple[tuple[str, Strip, int], ...]
    memory: int | None


E = TypeVar("E", bound=BaseException)


def bare(error: E) -> E:
    """An error that may travel: without what it came from, where libraries keep requests, headers and all."""
    error.__cause__ = error.__context__ = None
    return error
