"""LFS objects asked for together: few requests, each answer to who asked, a fault to who suffered it."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge.hub_answers import LfsUpload
from tensorport_hub.edge.hub_batch import LfsBatch
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt

BATCH = "*/info/lfs/objects/batch"


def receipts(count: int) -> list[Receipt]:
    """Of so many different files."""
    contents = [b"%d" % number for number in range(count)]
    return [Receipt(f"{i}.npy", len(c), hashlib.sha256(c).hexdigest()) for i, c in enumerate(contents)]


def batch_of(hub: DevHub) -> LfsBatch:
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    return LfsBatch(client, "me/mirror")


def asked(hub: DevHub) -> int:
    """Batch requests so far."""
    return sum(seen.path.endswith("/objects/batch") for seen in hub.seen)


def ask_behind_the_first(
    hub: DevHub, batch: LfsBatch, wanted: list[Receipt]
) -> list[Future[LfsUpload | None]]:
    """All ask; the first one's request is under way, and slow, when the others come."""
    fault = hub.faults.add(Fault("stall", "POST", path=BATCH, seconds=0.5))
    with ThreadPoolExecutor(len(wanted)) as pool:
        futures = [pool.submit(batch.ask, wanted[0])]
        while not any(fired.fault is fault for fired in hub.faults.fired):
            time.sleep(0.005)
        futures += [pool.submit(batch.ask, receipt) for receipt in wanted[1:]]
    return futures


def test_who_comes_meanwhile_shares_the_next_request(hub: DevHub) -> None:
    """Twenty objects in two requests; each answer is about the object that was asked for."""
    wanted = receipts(20)
    futures = ask_behind_the_first(hub, batch_of(hub), wanted)
    for receipt, future in zip(wanted, futures, strict=True):
        upload = future.result()
        assert upload is not None
        assert receipt.sha256 in upload.href
    assert asked(hub) == 2


def test_one_request_has_a_hundred_objects_at_most(hub: DevHub) -> None:
    """What is beyond waits for the request after it, and no object is asked for twice."""
    wanted = receipts(150)
    futures = ask_behind_the_first(hub, batch_of(hub), wanted)
    assert all(future.result() is not None for future in futures)
    assert asked(hub) == 3


def test_equal_files_share_an_answer(hub: DevHub) -> None:
    """Two files of the same content that end together are one object, and both are told of it."""
    first, second = receipts(2)
    same = Receipt("copy.npy", second.size, second.sha256)
    futures = ask_behind_the_first(hub, batch_of(hub), [first, second, same])
    assert futures[1].result() == futures[2].result() is not None


def test_a_refused_object_is_refused_alone(hub: DevHub) -> None:
    """A size that the server knows to be wrong fails that file, whoever asks beside it."""
    hub.add_repo("me/mirror", {".gitattributes": b"*.npy filter=lfs\n", "old.npy": b"content"})
    right = receipts(3)
    wrong = Receipt("wrong.npy", 99, hashlib.sha256(b"content").hexdigest())
    *fine, refused = ask_behind_the_first(hub, batch_of(hub), [*right, wrong])
    assert all(future.result() is not None for future in fine)
    with pytest.raises(DestinationError, match=r"`wrong\.npy` is refused by the LFS server"):
        refused.result()


def test_a_failed_request_fails_for_who_made_it(hub: DevHub) -> None:
    """The others ask once more, together again, and are answered."""
    batch, wanted = batch_of(hub), receipts(8)
    hub.faults.add(Fault("status", "POST", path=BATCH, status=403, after=1))
    futures = ask_behind_the_first(hub, batch, wanted)
    (failure,) = [error for future in futures if (error := future.exception()) is not None]
    assert isinstance(failure, DestinationError)
    assert asked(hub) == 3


def test_a_lone_writer_waits_for_nobody(hub: DevHub) -> None:
    """One after another, each object has a request of its own."""
    batch = batch_of(hub)
    for receipt in receipts(3):
        assert batch.ask(receipt) is not None
    assert asked(hub) == 3
