"""Small things sent together: few requests, each answer to who asked, a fault to who suffered it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tensorport_hub.devhub import DevHub, Fault
from tensorport_hub.edge.http import Http
from tensorport_hub.edge.hub_answers import LfsUpload
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.edge.hub_xet import XetSession
from tensorport_hub.edge.together import Together
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import SMALL_NBYTES, Receipt

LfsBatch = Together[Receipt, LfsUpload | None]
BATCH = "*/info/lfs/objects/batch"


def receipts(count: int) -> list[Receipt]:
    """Of so many different files."""
    contents = [b"%d" % number for number in range(count)]
    return [Receipt(f"{i}.npy", len(c), hashlib.sha256(c).hexdigest()) for i, c in enumerate(contents)]


def batch_of(hub: DevHub) -> LfsBatch:
    """The LFS batch endpoint of one repository."""
    client = HubClient(endpoint=hub.endpoint, token=hub.token)
    client.create_repo("me/mirror", private=False)
    return LfsBatch(lambda objects: client.lfs_batch("me/mirror", objects))


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


def test_a_failed_request_fails_for_all_who_share_it(hub: DevHub) -> None:
    """None of them asks once more to be refused as well; who comes later is answered."""
    batch, wanted = batch_of(hub), receipts(9)
    hub.faults.add(Fault("status", "POST", path=BATCH, status=403, after=1))
    first, *others = ask_behind_the_first(hub, batch, wanted[:8])
    assert first.result() is not None
    for future in others:
        with pytest.raises(DestinationError):
            future.result()
    assert asked(hub) == 2
    assert batch.ask(wanted[8]) is not None


def test_a_lone_writer_waits_for_nobody(hub: DevHub) -> None:
    """One after another, each object has a request of its own."""
    batch = batch_of(hub)
    for receipt in receipts(3):
        assert batch.ask(receipt) is not None
    assert asked(hub) == 3


def xet_requests(hub: DevHub, path: str, method: str = "POST") -> int:
    """Requests so far to a place of the Xet storage."""
    return sum(seen.method == method and path in seen.path for seen in hub.seen)


def send_small(session: XetSession, contents: dict[str, bytes]) -> dict[str, Future[Receipt]]:
    """Small files, each written by a thread of its own."""

    def send(path: str, data: bytes) -> Receipt:
        upload = session.open(path, len(data))
        upload.write(memoryview(data))
        return upload.finish()

    with ThreadPoolExecutor(len(contents)) as pool:
        return {path: pool.submit(send, path, data) for path, data in contents.items()}


@pytest.fixture
def xet(hub: DevHub) -> Iterator[XetSession]:
    """Uploads to the Xet storage of `me/mirror`."""
    client, http = HubClient(endpoint=hub.endpoint, token=hub.token), Http(read_seconds=5)
    client.create_repo("me/mirror", private=False)
    session = XetSession.offered(client, http, "me/mirror", uploads=2)
    assert session is not None
    yield session
    session.close()
    http.close()


def test_small_files_share_a_commit_of_the_storage(hub: DevHub, xet: XetSession) -> None:
    """Thirty small files that end while one is sent are one xorb; each receipt is of its own content."""
    contents = {f"{i}.npy": os.urandom(3000 + i) for i in range(30)} | {"empty.npy": b""}
    hub.faults.add(Fault("stall", "POST", path="*/xorbs*", seconds=0.5))
    for path, future in send_small(xet, contents).items():
        data = contents[path]
        assert future.result() == Receipt(path, len(data), hashlib.sha256(data).hexdigest())
    assert xet_requests(hub, "/xorbs") <= 4


def test_only_large_files_are_looked_for(hub: DevHub, xet: XetSession) -> None:
    """The storage is asked whether it has the beginning of a file only where that may spare megabytes."""
    for future in send_small(xet, {f"{i}.npy": os.urandom(3000 + i) for i in range(5)}).values():
        future.result()
    assert xet_requests(hub, "/chunks/", "GET") == 0
    large = os.urandom(SMALL_NBYTES + 1)
    send_small(xet, {"large.npy": large})["large.npy"].result()
    assert xet_requests(hub, "/chunks/", "GET") > 0


def test_a_storage_that_fails_is_an_error_that_may_pass(hub: DevHub, xet: XetSession) -> None:
    """Whoever sent gets an error of ours; the same files go once the storage works again."""
    contents = {f"{i}.npy": os.urandom(3000) for i in range(5)}
    hub.faults.add(Fault("status", "POST", path="*/xorbs*", status=403, times=None))
    for future in send_small(xet, contents).values():
        with pytest.raises(DestinationError, match="Xet upload failed") as caught:
            future.result()
        assert caught.value.transient
    hub.faults.clear()
    assert all(future.result().size == 3000 for future in send_small(xet, contents).values())


def test_a_small_file_of_the_wrong_length(xet: XetSession) -> None:
    """It is refused before anything is sent."""
    upload = xet.open("a.npy", 4)
    upload.write(memoryview(b"123"))
    with pytest.raises(DestinationError, match="wrong length: expected 4 bytes, got 3"):
        upload.finish()
