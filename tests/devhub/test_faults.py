"""Faults: each kind does what its name says, to the requests it names, as often as it says."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import urllib3
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tensorport_hub.devhub import DevHub, Fault

from .conftest import CdnUrl, Fetch, MakeHub, random_bytes

DATA = random_bytes(600_000)
CONFIG = "/org/model/resolve/main/config.json"


@pytest.fixture
def url(hub: DevHub, cdn_url: CdnUrl) -> str:
    """A signed URL of 600,000 bytes on the CDN."""
    hub.add_repo("org/model", {"w.npy": DATA, "config.json": b'{"a": 1}'})
    found = cdn_url("org/model", "w.npy")
    hub.forget()
    return found


def body_until_broken(url: str, headers: dict[str, str] | None = None) -> bytes:
    """What arrives before the connection breaks."""
    received: list[bytes] = []
    with httpx2.stream("GET", url, headers=headers) as answer, pytest.raises(httpx2.RemoteProtocolError):
        received.extend(answer.iter_raw())
    return b"".join(received)


@pytest.mark.parametrize("at", [0, 1, 300_000])
def test_drop_closes_after_so_many_body_bytes(hub: DevHub, url: str, at: int) -> None:
    """The headers promise everything, `at` bytes come, the connection is closed."""
    hub.faults.add(Fault("drop", origin="cdn", at=at))
    assert body_until_broken(url) == DATA[:at]
    assert [(seen.status, seen.bytes_out) for seen in hub.seen] == [(200, at)]
    assert httpx2.get(url).content == DATA


def test_drop_counts_from_the_start_of_the_range(hub: DevHub, url: str) -> None:
    """`at` is an offset in the body that is sent, not in the file."""
    hub.faults.add(Fault("drop", origin="cdn", at=10))
    assert body_until_broken(url, {"Range": "bytes=1000-1999"}) == DATA[1000:1010]


def test_drop_of_an_upload_stores_nothing(hub: DevHub, api: HfApi, lfs_only: None) -> None:
    """The connection breaks while the body is read; the client's second try goes through."""
    api.create_repo("me/out")
    hub.faults.add(Fault("drop", method="PUT", origin="cdn", at=100_000))
    api.upload_file(path_or_fileobj=DATA, path_in_repo="w.npy", repo_id="me/out")
    assert hub.read("me/out", "w.npy") == DATA
    assert [seen.status for seen in hub.seen if seen.method == "PUT"] == [0, 200]


@pytest.mark.parametrize("asked", [None, "bytes=1000-1999"])
def test_truncate_is_short_and_consistent(hub: DevHub, url: str, asked: str | None) -> None:
    """Fewer bytes than asked, with a Content-Length and Content-Range that agree with them."""
    hub.faults.add(Fault("truncate", at=100))
    answer = httpx2.get(url, headers={"Range": asked} if asked else {})
    assert len(answer.content) == 100
    assert answer.headers["Content-Length"] == "100"
    if asked:
        assert answer.status_code == 206
        assert answer.headers["Content-Range"] == f"bytes 1000-1099/{len(DATA)}"


def test_truncate_without_a_number_halves(hub: DevHub, url: str) -> None:
    """Half of what was asked."""
    hub.faults.add(Fault("truncate"))
    assert httpx2.get(url).content == DATA[:300_000]


def test_ignore_range_sends_the_whole_file(hub: DevHub, url: str) -> None:
    """200 with everything to a Range request."""
    hub.faults.add(Fault("ignore_range"))
    answer = httpx2.get(url, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (200, DATA)
    assert "Content-Range" not in answer.headers


def test_wrong_bytes_flips_one_byte(hub: DevHub, url: str) -> None:
    """Everything is right but the byte at `at`."""
    hub.faults.add(Fault("wrong_bytes", at=299_999))
    found = httpx2.get(url).content
    assert [index for index in range(len(DATA)) if found[index] != DATA[index]] == [299_999]


def test_stall_is_silent_and_then_goes_on(hub: DevHub, url: str) -> None:
    """`at` bytes, silence, the rest."""
    hub.faults.add(Fault("stall", at=1000, seconds=0.5))
    start = time.monotonic()
    with httpx2.stream("GET", url) as answer:
        blocks = answer.iter_raw()
        assert next(blocks) == DATA[:1000]
        assert time.monotonic() - start < 0.4
        rest = b"".join(blocks)
    assert time.monotonic() - start >= 0.5
    assert rest == DATA[1000:]


def test_slow_holds_each_answer_to_its_rate(hub: DevHub, url: str) -> None:
    """Two answers at a time take no longer than one, and none comes faster than it may."""
    rate = 4 * len(DATA)
    hub.faults.add(Fault("slow", origin="cdn", times=None, rate=rate))
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as readers:
        assert [*readers.map(lambda _: httpx2.get(url).content, range(8))] == [DATA] * 8
    assert len(DATA) / rate <= time.monotonic() - begun < 8 * len(DATA) / rate


def test_stall_outlasts_a_clients_patience(hub: DevHub, url: str) -> None:
    """A read timeout; stopping the hub does not wait for the silence to end."""
    hub.faults.add(Fault("stall", at=0, seconds=60))
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(url, timeout=0.2)


def test_stall_of_an_upload(hub: DevHub, api: HfApi, lfs_only: None) -> None:
    """The server stops reading for a while and then takes the rest."""
    api.create_repo("me/out")
    hub.faults.add(Fault("stall", method="PUT", at=1000, seconds=0.3))
    start = time.monotonic()
    api.upload_file(path_or_fileobj=DATA, path_in_repo="w.npy", repo_id="me/out")
    assert time.monotonic() - start >= 0.3
    assert hub.read("me/out", "w.npy") == DATA


def test_status_with_retry_after_and_ratelimit(hub: DevHub, url: str, fetch: Fetch) -> None:
    """429 with Retry-After, 429 with the RateLimit header, 5xx, 403: as asked."""
    hub.faults.add(Fault("status", path=CONFIG, retry_after=7))
    hub.faults.add(Fault("status", path=CONFIG, ratelimit_t=55))
    hub.faults.add(Fault("status", path=CONFIG))
    hub.faults.add(Fault("status", path=CONFIG, status=403))
    first, second, third, fourth, fifth = (fetch("GET", CONFIG) for _ in range(5))
    assert (first.status, first.headers["Retry-After"]) == (429, "7")
    assert (second.status, second.headers["RateLimit"]) == (429, '"api";r=0;t=55')
    assert (third.status, fourth.status, fifth.status) == (503, 403, 200)


def test_the_client_waits_out_a_429(hub: DevHub, api: HfApi, url: str) -> None:
    """huggingface_hub retries its listing after the time it was told."""
    hub.faults.add(Fault("status", path="*/tree/*", ratelimit_t=0))
    assert any(row.path == "w.npy" for row in api.list_repo_tree("org/model"))
    assert [seen.status for seen in hub.seen] == [429, 200]


def test_expire_kills_one_url_until_resolved_again(hub: DevHub, url: str, cdn_url: CdnUrl) -> None:
    """403 from the fault on, for ever; a fresh URL for the same file works."""
    hub.faults.add(Fault("expire", origin="cdn", after=1))
    assert [httpx2.get(url).status_code for _ in range(3)] == [200, 403, 403]
    assert httpx2.get(cdn_url("org/model", "w.npy")).status_code == 200
    assert len(hub.faults.fired) == 1


def test_conflict_answers_412_to_a_commit(hub: DevHub, api: HfApi) -> None:
    """The commit is refused as if somebody else had committed."""
    api.create_repo("me/out")
    hub.faults.add(Fault("conflict", path="*/commit/*"))
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="me/out")
    assert error.value.response.status_code == 412
    assert len(hub.commits("me/out")) == 1


def test_close_answers_nothing(hub: DevHub, url: str, fetch: Fetch) -> None:
    """The connection is closed before any answer."""
    hub.faults.add(Fault("close", path=CONFIG))
    with pytest.raises((urllib3.exceptions.ProtocolError, ConnectionError)):
        fetch("GET", CONFIG)
    assert [seen.status for seen in hub.seen] == [0]
    assert fetch("GET", CONFIG).status == 200


def test_lost_answer_commits_and_says_nothing(hub: DevHub, api: HfApi) -> None:
    """The commit is made, its answer never comes."""
    api.create_repo("me/out")
    hub.faults.add(Fault("lost_answer", path="*/commit/*"))
    with pytest.raises(httpx2.RemoteProtocolError):
        api.create_commit("me/out", [CommitOperationAdd("x.txt", b"x")], commit_message="m")
    assert "x.txt" in hub.files("me/out")
    assert hub.commits("me/out")[0].title == "m"


def test_body_faults_befall_api_answers_too(hub: DevHub, url: str, fetch: Fetch) -> None:
    """A JSON answer is cut like a file's."""
    hub.faults.add(Fault("drop", path="/api/models/org/model", at=5))
    with pytest.raises(urllib3.exceptions.HTTPError):
        _ = fetch("GET", "/api/models/org/model").data


@pytest.mark.parametrize("kind", ["drop", "status"])
def test_faults_in_the_xet_storage_are_survived(hub: DevHub, api: HfApi, kind: str) -> None:
    """A xorb read that breaks once is read again by hf_xet."""
    api.create_repo("me/out")
    api.upload_file(path_or_fileobj=DATA, path_in_repo="w.npy", repo_id="me/out")
    hub.faults.add(Fault(kind, path="/cas/xorbs/*", at=1000))
    assert Path(api.hf_hub_download("me/out", "w.npy")).read_bytes() == DATA
    assert hub.faults.fired


def test_a_byte_flipped_in_the_xet_storage_is_the_readers_to_find(hub: DevHub, api: HfApi) -> None:
    """hf_xet 1.8 hashes nothing that it downloads: one wrong byte arrives, unless a later one refuses."""
    api.create_repo("me/out")
    api.upload_file(path_or_fileobj=DATA, path_in_repo="w.npy", repo_id="me/out")
    hub.faults.add(Fault("wrong_bytes", path="/cas/xorbs/*", at=1000))
    try:
        found = Path(api.hf_hub_download("me/out", "w.npy")).read_bytes()
    except RuntimeError:
        return
    assert sum(one != other for one, other in zip(found, DATA, strict=True)) == 1


def test_after_and_times_choose_the_requests(hub: DevHub, url: str, fetch: Fetch) -> None:
    """The first `after` matches pass, `times` suffer, the rest pass; None is for ever."""
    hub.faults.add(Fault("status", path=CONFIG, after=1, times=2))
    assert [fetch("GET", CONFIG).status for _ in range(5)] == [200, 503, 503, 200, 200]
    hub.faults.clear()
    hub.faults.add(Fault("status", path=CONFIG, times=None))
    assert [fetch("GET", CONFIG).status for _ in range(4)] == [503] * 4
    hub.faults.clear()
    assert fetch("GET", CONFIG).status == 200
    assert hub.faults.fired == []


def test_faults_match_origin_method_and_decoded_path(hub: DevHub, url: str, fetch: Fetch) -> None:
    """The pattern is for the decoded path; a HEAD is no GET; `*` is any method."""
    hub.add_repo("org/odd", {"a b.txt": b"x"})
    hub.faults.add(Fault("status", origin="cdn", path="*config.json"))
    hub.faults.add(Fault("status", path="*/a b.txt"))
    hub.faults.add(Fault("status", method="*", path="/api/whoami-v2"))
    assert fetch("GET", CONFIG).status == 200
    assert fetch("HEAD", "/org/odd/resolve/main/a%20b.txt").status == 200
    assert fetch("GET", "/org/odd/resolve/main/a%20b.txt").status == 503
    assert fetch("GET", "/api/whoami-v2").status == 503
    assert [(fired.kind, fired.path) for fired in hub.faults.fired] == [
        ("status", "/org/odd/resolve/main/a b.txt"),
        ("status", "/api/whoami-v2"),
    ]


def test_unknown_faults_are_refused() -> None:
    """A kind or an origin that does not exist."""
    with pytest.raises(ValueError, match="fault `explode`"):
        Fault("explode")
    with pytest.raises(ValueError, match="origin `moon`"):
        Fault("drop", origin="moon")


def test_every_answer_tells_what_is_left(make_hub: MakeHub) -> None:
    """RateLimit and RateLimit-Policy on /api and /resolve, in windows of their own."""
    hub = make_hub(rate_limits={"api": 3, "resolvers": 2}, rate_window=60)
    hub.add_repo("org/model", {"a.txt": b"a", "w.npy": b"\0"})
    answers = [httpx2.get(f"{hub.endpoint}/api/models/org/model") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["RateLimit"].split(";")[:2] for answer in answers] == [
        ['"api"', "r=2"],
        ['"api"', "r=1"],
        ['"api"', "r=0"],
        ['"api"', "r=0"],
    ]
    assert answers[0].headers["RateLimit-Policy"] == '"fixed window";"api";q=3;w=60'
    resolved = [httpx2.head(f"{hub.endpoint}/org/model/resolve/main/a.txt") for _ in range(3)]
    assert [answer.status_code for answer in resolved] == [200, 200, 429]
    headers = {"Authorization": f"Bearer {hub.token}"}
    assert httpx2.get(f"{hub.endpoint}/api/models/org/model", headers=headers).status_code == 200


def test_a_window_ends(make_hub: MakeHub) -> None:
    """After the window the count starts again."""
    hub = make_hub(rate_limits={"api": 1}, rate_window=0.3)
    url = f"{hub.endpoint}/api/models"
    assert [httpx2.get(url).status_code for _ in range(2)] == [200, 429]
    time.sleep(0.35)
    assert httpx2.get(url).status_code == 200


def test_an_unknown_rate_limit_is_refused(make_hub: MakeHub) -> None:
    """Only `api` and `resolvers` are windows."""
    with pytest.raises(ValueError, match="rate limit `pages`"):
        make_hub(rate_limits={"pages": 1})
