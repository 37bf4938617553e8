"""Bodies that are not what they claim: what hf_xet really sends, changed and posted by hand."""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.devhub.xet import cas
from tensorport_hub.devhub.xet.admission import admit_shard, admit_xorb
from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import hash_bytes, hash_text
from tensorport_hub.devhub.xet.store import Store
from tensorport_hub.devhub.xet.xorb import XORB_MAX_NBYTES
from tests.devhub.xet.conftest import Recording, Server, random_bytes, sha256_of

# Where things lie in a shard of one file with one term: a header of 48 bytes, then records of 48.
FILE, TERM, VERIFICATION, METADATA, XORB, CHUNK = 48, 96, 144, 192, 288, 336
FLAGS, COUNT = 32, 36  # in a file's head
TERM_NBYTES, TERM_START, TERM_STOP = 36, 40, 44


def flip(body: bytes, at: int, bits: int = 1) -> bytes:
    return body[:at] + bytes([body[at] ^ bits]) + body[at + 1 :]


def put(body: bytes, at: int, value: int) -> bytes:
    return body[:at] + struct.pack("<I", value) + body[at + 4 :]


def post_xorb(server: Server, xorb_hash: str, body: bytes) -> tuple[int, str]:
    status, answer, _ = server.call("POST", f"/cas/v1/xorbs/default/{xorb_hash}", body)
    return status, answer.decode()


def post_shard(server: Server, body: bytes) -> tuple[int, str]:
    status, answer, _ = server.call("POST", "/cas/v1/shards", body)
    return status, answer.decode()


def test_untouched(server: Server, recording: Recording) -> None:
    """The recorded bodies are accepted as they are, and say so when they come again."""
    assert post_xorb(server, recording.xorb_hash, recording.xorb) == (200, '{"was_inserted": true}')
    assert post_xorb(server, recording.xorb_hash, recording.xorb) == (200, '{"was_inserted": false}')
    assert post_shard(server, recording.shard) == (200, '{"result": 1}')
    assert post_shard(server, recording.shard) == (200, '{"result": 0}')
    blob = server.cas.find(sha256_of(recording.content))
    assert blob is not None
    assert b"".join(blob.read(0, blob.size)) == recording.content


def test_xorb_bit_flip(server: Server, recording: Recording) -> None:
    """A flipped bit in a packed chunk, wherever it is, is a 400 and nothing is stored."""
    for at in range(100, len(recording.xorb) - 8, len(recording.xorb) // 12):
        status, _ = post_xorb(server, recording.xorb_hash, flip(recording.xorb, at))
        assert status == 400
    assert not list(server.root.glob("xorbs/*/*"))
    assert not list(server.root.glob("incoming/*"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (lambda xorb: flip(xorb, 0), "header version 0, got 1"),
        (lambda xorb: flip(xorb, 1), "chunk"),
        (lambda xorb: flip(xorb, 4, 0x40), "unknown compression scheme"),
        (lambda xorb: flip(xorb, 5), "unpacks to"),
        (lambda xorb: flip(xorb, 7, 0x80), "unpacked bytes"),
        (lambda xorb: xorb[:-1000], "ends at byte"),
        (lambda xorb: xorb[:-3], "ends at byte"),
        (lambda xorb: xorb + b"\0\0\0", "stray bytes"),
        (lambda xorb: xorb + b"XETBLOB\1\7\0\0\0", "footer says"),
        (lambda xorb: b"", "no chunks"),
        (lambda xorb: bytes(4), "stray bytes"),
        (lambda xorb: b"XETBLOB\7\0\0\0", "no chunks"),
        (lambda xorb: random_bytes(10_000), "xorb"),
    ],
)
def test_xorb_malformed(server: Server, recording: Recording, body: object, words: str) -> None:
    """A xorb with a wrong header, length or tail is a 400 that says what is wrong."""
    assert callable(body)
    status, answer = post_xorb(server, recording.xorb_hash, body(recording.xorb))
    assert status == 400
    assert words in answer


def test_xorb_footer(server: Server, recording: Recording) -> None:
    """A footer with its length after the last chunk is taken and not kept."""
    footer = b"XETBLOB\1 and more"
    body = recording.xorb + footer + struct.pack("<I", len(footer))
    assert post_xorb(server, recording.xorb_hash, body)[0] == 200
    (stored,) = server.root.glob("xorbs/*/*")
    assert stored.read_bytes() == recording.xorb


def test_xorb_wrong_url(server: Server, recording: Recording) -> None:
    """A sound xorb under another hash, a malformed hash or an unknown prefix is a 400."""
    other = hash_text(bytes(range(32)))
    status, answer = post_xorb(server, other, recording.xorb)
    assert status == 400
    assert other in answer
    assert recording.xorb_hash in answer
    for malformed in ("abc", "Z" * 64, recording.xorb_hash.upper()):
        assert post_xorb(server, malformed, recording.xorb)[0] == 400
    status, _, _ = server.call("POST", f"/cas/v1/xorbs/other/{recording.xorb_hash}", recording.xorb)
    assert status == 400


def test_xorb_too_large(server: Server, recording: Recording) -> None:
    """A body past the limit is refused by its length, before it is read."""
    status, _ = post_xorb(server, recording.xorb_hash, bytes(XORB_MAX_NBYTES + 1))
    assert status == 413
    assert not list(server.root.glob("incoming/*"))


def test_xorb_posted_twice_at_once(server: Server, recording: Recording) -> None:
    """The same xorb from several connections at once is stored once, and all are told well."""
    with ThreadPoolExecutor(4) as pool:
        posts = [pool.submit(post_xorb, server, recording.xorb_hash, recording.xorb) for _ in range(4)]
        answers = sorted(post.result() for post in posts)
    new, known = (200, '{"was_inserted": true}'), (200, '{"was_inserted": false}')
    assert answers == [known, known, known, new]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda shard: flip(shard, FILE), "its chunks have the file hash"),
        (lambda shard: flip(shard, METADATA), "the bytes have"),
        (lambda shard: flip(shard, VERIFICATION), "verification hash"),
        (lambda shard: put(shard, FILE + FLAGS, 1 << 30), "no verification hashes"),
        (lambda shard: flip(shard, TERM), "was not uploaded"),
        (lambda shard: put(shard, TERM + TERM_STOP, 8000), "outside"),
        (lambda shard: put(shard, TERM + TERM_START, 8000), "outside"),
        (lambda shard: put(shard, TERM + TERM_STOP, 0), "outside"),
        (lambda shard: put(shard, TERM + TERM_START, 1), "unpacked bytes"),
        (lambda shard: put(shard, TERM + TERM_NBYTES, 1), "expected 1 unpacked bytes"),
        (lambda shard: put(shard, FILE + COUNT, 0xFFFFFFFF), "ends at byte"),
        (lambda shard: put(shard, FILE + COUNT, 0), "its chunks have the file hash `000"),
        (lambda shard: flip(shard, XORB), "was not uploaded"),
        (lambda shard: put(shard, XORB + 40, 5), "5"),
        (lambda shard: put(shard, XORB + 36, 1), "chunks"),
        (lambda shard: flip(shard, CHUNK), "chunk hashes"),
        (lambda shard: flip(shard, CHUNK + 32), "chunk offsets"),
        (lambda shard: flip(shard, CHUNK + 36), "chunk lengths"),
        (lambda shard: shard[:-48], "ends at byte"),
        (lambda shard: shard[:200], "ends at byte"),
        (lambda shard: shard + bytes(48), "after the records"),
        (lambda shard: flip(shard, 0), "tag"),
        (lambda shard: flip(shard, 32), "version"),
        (lambda shard: flip(shard, 40), "footer"),
        (lambda shard: b"", "header"),
        (lambda shard: random_bytes(4800), "tag"),
    ],
)
def test_shard_tampered(server: Server, recording: Recording, change: object, words: str) -> None:
    """A shard with one thing changed is a 400 that names it, and no file appears."""
    assert callable(change)
    assert post_xorb(server, recording.xorb_hash, recording.xorb)[0] == 200
    status, answer = post_shard(server, change(recording.shard))
    assert status == 400
    assert words in answer
    assert server.cas.find(sha256_of(recording.content)) is None


def test_shard_before_xorb(server: Server, recording: Recording) -> None:
    """A shard that comes before its xorb is a 400 that names the xorb."""
    status, answer = post_shard(server, recording.shard)
    assert status == 400
    assert recording.xorb_hash in answer


def test_sha256_checked_when_known(server: Server, recording: Recording) -> None:
    """A wrong sha256 is refused too when the file is registered and its bytes are not hashed again."""
    assert post_xorb(server, recording.xorb_hash, recording.xorb)[0] == 200
    assert post_shard(server, recording.shard)[0] == 200
    assert post_shard(server, flip(recording.shard, METADATA))[0] == 400


def test_only_the_good_file(server: Server, recording: Recording) -> None:
    """Two files in a shard, one of them wrong: neither is registered."""
    assert post_xorb(server, recording.xorb_hash, recording.xorb)[0] == 200
    record = recording.shard[FILE : METADATA + 48]
    both = recording.shard[:FILE] + record + flip(record, 0) + recording.shard[METADATA + 48 :]
    assert post_shard(server, both)[0] == 400
    assert server.cas.find(sha256_of(recording.content)) is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/cas/v1/xorbs/default/" + "0" * 64),
        ("POST", "/cas/v1/shards"),
        ("GET", "/cas/v1/reconstructions/" + "0" * 64),
        ("GET", "/cas/v1/chunks/default/" + "0" * 64),
        ("POST", "/cas/v1/xorb-grants/default/" + "0" * 64),
        ("POST", "/cas/v2/shards"),
        ("GET", "/cas/v2/reconstructions/" + "0" * 64),
    ],
)
@pytest.mark.parametrize("authorization", ["Bearer bad-token", "Basic good-token", "good-token", ""])
def test_refused_token(server: Server, method: str, path: str, authorization: str) -> None:
    """Every endpoint answers 401 without a token that is taken."""
    body = b"" if method == "POST" else None
    status, _, _ = server.call(method, path, body, Authorization=authorization)
    assert status == 401


def test_not_offered(server: Server) -> None:
    """What hf_xet asks for first and does without is a 404."""
    for method, path in (
        ("GET", "/cas/v1/chunks/default/" + "0" * 64),
        ("POST", "/cas/v1/xorb-grants/default/" + "0" * 64),
        ("POST", "/cas/v2/shards"),
        ("GET", "/cas/v2/reconstructions/" + "0" * 64),
    ):
        assert server.call(method, path, b"" if method == "POST" else None)[0] == 404


def reconstruct(server: Server, xet_hash: str, wanted: str | None = None) -> tuple[int, bytes]:
    headers = {} if wanted is None else {"Range": wanted}
    status, answer, _ = server.call("GET", f"/cas/v1/reconstructions/{xet_hash}", **headers)
    return status, answer


def test_reconstruction_bounds(server: Server, recording: Recording) -> None:
    """Unknown files are 404, ranges past the end 416, malformed hashes and ranges 400."""
    post_xorb(server, recording.xorb_hash, recording.xorb)
    post_shard(server, recording.shard)
    known, size = recording.info.hash, len(recording.content)
    assert reconstruct(server, known)[0] == 200
    assert reconstruct(server, known, f"bytes={size - 1}-{size + 10}")[0] == 200
    assert reconstruct(server, known, f"bytes={size}-{size + 10}")[0] == 416
    assert reconstruct(server, "1" * 64)[0] == 404
    assert reconstruct(server, "xyz")[0] == 400
    for malformed in ("bytes=5-4", "bytes=-5", "bytes=a-b", "0-5", "bytes=1-2,4-5"):
        assert reconstruct(server, known, malformed)[0] == 400


def test_fetch_urls(server: Server, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch URL grants its own byte range, without a token, until it expires; anything else is a 403."""
    post_xorb(server, recording.xorb_hash, recording.xorb)
    post_shard(server, recording.shard)

    def fetch_info() -> tuple[str, int, int]:
        answer = json.loads(reconstruct(server, recording.info.hash, "bytes=300000-300009")[1])
        (entry,) = answer["fetch_info"][recording.xorb_hash]
        return entry["url"], entry["url_range"]["start"], entry["url_range"]["end"]

    url, first, last = fetch_info()
    status, body, headers = server.call("GET", url, Range=f"bytes={first}-{last}", Authorization="")
    assert status == 206
    assert body == recording.xorb[first : last + 1]
    assert headers["Content-Range"].startswith(f"bytes {first}-{last}/")
    for wanted in (f"bytes={first}-{last + 1}", f"bytes={first - 1}-{last}", f"bytes={first}-", "bytes=-9"):
        assert server.call("GET", url, Range=wanted)[0] == 403
    assert server.call("GET", url)[0] == 403
    widened = url.replace(f"range={first}-{last}", f"range=0-{last}")
    assert server.call("GET", widened, Range=f"bytes=0-{last}")[0] == 403
    assert server.call("GET", url.replace("signature=", "signature=%C3%A9"), Range="bytes=0-1")[0] == 403
    monkeypatch.setattr(cas, "_URL_SECONDS", -1)
    url, first, last = fetch_info()
    assert server.call("GET", url, Range=f"bytes={first}-{last}")[0] == 403


def test_any_damage(server: Server, recording: Recording, tmp_path: Path) -> None:
    """Whatever is done to the bodies, they are refused or their content is what they claim: nothing else."""
    body = tmp_path / "body"
    digest = hash_bytes(recording.xorb_hash)

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.data())
    def damage(data: st.DataObject) -> None:
        sound = data.draw(st.sampled_from([recording.xorb, recording.shard]))
        position = st.integers(0, len(sound) - 1) | st.integers(0, 500)
        at, value = data.draw(position), data.draw(st.binary(max_size=9))
        changed = sound[:at] + value + sound[at + data.draw(st.integers(0, 9)) :]
        store = Store(tmp_path / "damaged")
        body.write_bytes(recording.xorb)
        admit_xorb(store, digest, body)
        body.write_bytes(changed)
        with suppress(Refused):
            if sound is recording.xorb:
                admit_xorb(store, digest, body)
            else:
                admit_shard(store, body)
        blob = store.find(sha256_of(recording.content))
        assert blob is None or b"".join(blob.read(0, blob.size)) == recording.content
        store.close()

    damage()
