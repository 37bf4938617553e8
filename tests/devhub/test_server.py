"""The devhub itself: start, stop, its root, seeds, the book of requests."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi

import tensorport_hub.devhub
from tensorport_hub.devhub import DevHub, RootInUse, add

from .conftest import Fetch, random_bytes, sha256


def test_two_origins_on_loopback(hub: DevHub) -> None:
    """The Hub is 127.0.0.1, the CDN localhost, each on a port of its own."""
    assert hub.endpoint.startswith("http://127.0.0.1:")
    assert hub.cdn.startswith("http://localhost:")
    assert hub.endpoint.rpartition(":")[2] != hub.cdn.rpartition(":")[2]


def test_a_chosen_port_is_taken_and_free_again(tmp_path: Path) -> None:
    """`port=` is where it listens; after `stop` another one may."""
    with DevHub(tmp_path / "a") as first:
        port = int(first.endpoint.rpartition(":")[2])
        cdn_port = int(first.cdn.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            DevHub(tmp_path / "b", port=port).start()
        with pytest.raises(OSError, match="in use"):
            DevHub(tmp_path / "b", cdn_port=cdn_port).start()
    with DevHub(tmp_path / "b", port=port, cdn_port=cdn_port) as second:
        assert second.endpoint == f"http://127.0.0.1:{port}"
        assert second.cdn == f"http://localhost:{cdn_port}"


def test_the_root_keeps_everything_over_a_restart(tmp_path: Path) -> None:
    """The token, repositories, users and pull requests are there again."""
    root = tmp_path / "root"
    with DevHub(root) as hub:
        token, bob = hub.token, hub.add_user("bob", orgs={"org": "write"})
        commit = hub.add_repo("org/model", {"w.npy": b"\0w"})
        HfApi(endpoint=hub.endpoint, token=bob).create_pull_request("org/model", "Title")
    with DevHub(root) as hub:
        assert hub.token == token
        assert hub.commits("org/model")[0].oid == commit
        assert hub.read("org/model", "w.npy") == b"\0w"
        api = HfApi(endpoint=hub.endpoint, token=bob)
        assert api.get_discussion_details("org/model", 1).author == "bob"


def test_files_uploaded_by_xet_outlive_a_restart(tmp_path: Path) -> None:
    """The Xet storage keeps its own."""
    data = random_bytes(200_000)
    with DevHub(tmp_path / "root") as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo("me/out")
        api.upload_file(path_or_fileobj=data, path_in_repo="w.npy", repo_id="me/out")
    with DevHub(tmp_path / "root") as hub:
        assert hub.read("me/out", "w.npy") == data


def test_one_root_is_served_once(tmp_path: Path) -> None:
    """A second devhub on the same root is refused, in this process and in another."""
    with DevHub(tmp_path / "root"):
        with pytest.raises(RootInUse, match="another devhub serves"):
            DevHub(tmp_path / "root").start()
        code = f"from tensorport_hub.devhub import DevHub; DevHub({str(tmp_path / 'root')!r}).start()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert "RootInUse" in done.stderr
    DevHub(tmp_path / "root").start().stop()


def test_add_works_on_a_stopped_and_on_a_running_root(tmp_path: Path) -> None:
    """`add` makes the repository; a devhub that is running serves it at once."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.npy").write_bytes(b"\0w")
    first = add(tmp_path / "root", "org/model", folder)
    with DevHub(tmp_path / "root") as hub:
        assert hub.commits("org/model")[0].oid == first
        (folder / "w.npy").write_bytes(b"\0x")
        arguments = f"{str(tmp_path / 'root')!r}, 'org/model', {str(folder)!r}"
        code = f"from tensorport_hub.devhub import add; add({arguments})"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
        assert hub.read("org/model", "w.npy") == b"\0x"
        add(tmp_path / "root", "org/secret", folder, private=True, gated=True)
        info = HfApi(endpoint=hub.endpoint, token=hub.add_user("bob", {"org": "read"})).model_info(
            "org/secret"
        )
        assert (info.private, info.gated) == (True, "auto")


def test_serve_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """SIGTERM ends the foreground server; it prints nothing itself."""
    code = f"""
    from tensorport_hub.devhub import serve
    serve({str(tmp_path / "root")!r}, ready=lambda hub: print(hub.endpoint, flush=True))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        assert httpx2.get(f"{endpoint}/api/models").json() == []
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
        assert process.stdout.read() == ""


def test_add_repo_takes_a_folder(hub: DevHub, tmp_path: Path) -> None:
    """Every file but version control and caches; LFS by rule, content or size; its own rules first."""
    folder = tmp_path / "model"
    for path, data in {
        "a.txt": b"a",
        "w.npy": b"\0w",
        "deep/b.dat": b"\xff\xfe",
        "x.special": b"text",
        ".gitattributes": b"*.special filter=lfs diff=lfs merge=lfs -text\n",
        ".git/config": b"no",
        ".cache/x": b"no",
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    hub.add_repo("org/model", folder, message="Seed")
    files = hub.files("org/model")
    assert {path for path, (_, digest, _) in files.items() if digest} == {"w.npy", "deep/b.dat", "x.special"}
    assert set(files) == {"a.txt", "w.npy", "deep/b.dat", "x.special", ".gitattributes"}
    assert files["w.npy"][1] == sha256(b"\0w")
    assert hub.commits("org/model")[0].title == "Seed"


def test_add_repo_adds_commits_to_what_is_there(hub: DevHub) -> None:
    """Files are added and replaced; nothing is removed."""
    first = hub.add_repo("org/model", {"a.txt": b"a", "b.txt": b"b"})
    second = hub.add_repo("org/model", {"b.txt": b"B"})
    assert [commit.oid for commit in hub.commits("org/model")][:2] == [second, first]
    assert hub.read("org/model", "b.txt") == b"B"
    assert hub.read("org/model", "b.txt", revision=first) == b"b"
    assert hub.read("org/model", "a.txt") == b"a"


def test_what_is_not_there_is_said(hub: DevHub, tmp_path: Path) -> None:
    """Unknown repositories, files and revisions; a folder that is none; bad names and roles."""
    hub.add_repo("org/model", {"a.txt": b"a"})
    for call in (
        lambda: hub.read("org/nowhere", "a.txt"),
        lambda: hub.read("org/model", "nowhere"),
        lambda: hub.files("org/model", "nowhere"),
    ):
        with pytest.raises(KeyError):
            call()
    with pytest.raises(NotADirectoryError):
        hub.add_repo("org/model", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a repository name"):
        hub.add_repo("model", {})
    with pytest.raises(ValueError, match="expected one of read, write, admin"):
        hub.add_user("bob", orgs={"org": "boss"})
    with pytest.raises(ValueError, match="expected `read` or `write`"):
        hub.add_token("me", role="god")
    with pytest.raises(ValueError, match="no user `nobody`"):
        hub.add_token("nobody")
    with pytest.raises(ValueError, match="is an organization"):
        hub.add_user("org")


def test_a_stopped_devhub_says_so(tmp_path: Path) -> None:
    """Its properties need it to run; stopping twice is harmless."""
    hub = DevHub(tmp_path / "root")
    with pytest.raises(RuntimeError, match="not running"):
        _ = hub.endpoint
    hub.start()
    with pytest.raises(RuntimeError, match="is running"):
        hub.start()
    hub.stop()
    hub.stop()


def test_the_book_of_requests(hub: DevHub, fetch: Fetch) -> None:
    """Every request of both origins with its status, range, sizes and whether it was authorized."""
    hub.add_repo("org/model", {"a b.txt": b"hello"})
    hub.forget()
    fetch("GET", "/org/model/resolve/main/a%20b.txt?x=1", headers={"Range": "bytes=1-2"})
    fetch("POST", "/api/models/org/model/paths-info/main", token="", fields={"paths": "x"})
    fetch("HEAD", f"{hub.cdn}/nowhere", token="")
    first, second, third = hub.seen
    assert (first.origin, first.method, first.path) == ("hub", "GET", "/org/model/resolve/main/a b.txt")
    assert (first.query, first.status, first.range, first.bytes_out) == ({"x": "1"}, 206, "bytes=1-2", 2)
    assert (first.authorized, first.authorization) == (True, f"Bearer {hub.token}")
    assert (second.status, second.authorized, second.authorization) == (200, False, None)
    assert (second.bytes_in > 0, second.bytes_out) == (True, 2)
    assert (third.origin, third.status, third.bytes_out) == ("cdn", 404, 0)
    hub.forget()
    assert hub.seen == []


def test_large_files_are_never_whole_in_memory(tmp_path: Path) -> None:
    """Seeding, serving and taking 300 MB, in a process of its own: its peak stays far below that."""
    code = f"""
    import json, resource, urllib.request
    from pathlib import Path
    from tensorport_hub.devhub import DevHub
    folder = Path({str(tmp_path / "model")!r})
    folder.mkdir()
    with open(folder / "w.npy", "wb") as file:
        file.truncate(300_000_000)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with DevHub({str(tmp_path / "root")!r}) as hub:
        hub.add_repo("org/model", folder)
        with urllib.request.urlopen(f"{{hub.endpoint}}/org/model/resolve/main/w.npy") as answer:
            assert sum(len(block) for block in iter(lambda: answer.read(1 << 20), b"")) == 300_000_000
        hub.add_repo("me/out", {{}})
        wanted = {{"oid": hub.files("org/model")["w.npy"][1], "size": 300_000_000}}
        request = urllib.request.Request(f"{{hub.endpoint}}/me/out.git/info/lfs/objects/batch")
        request.add_header("Authorization", f"Bearer {{hub.token}}")
        request.data = json.dumps({{"operation": "upload", "objects": [wanted]}}).encode()
        with urllib.request.urlopen(request) as answer:
            href = json.load(answer)["objects"][0]["actions"]["upload"]["href"]
        with open(folder / "w.npy", "rb") as file:
            headers = {{"Content-Length": "300000000"}}
            urllib.request.urlopen(urllib.request.Request(href, file, headers, method="PUT")).close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 80_000_000


def test_the_devhub_is_a_house_of_its_own() -> None:
    """Its modules import nothing else of tensorport_hub."""
    folder = Path(os.path.dirname(tensorport_hub.devhub.__file__))
    for module in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                ours = name.startswith("tensorport_hub")
                assert not ours or name.startswith("tensorport_hub.devhub"), f"{module.name}: {name}"


def test_the_book_counts_what_left_before_a_client_went_away(hub: DevHub) -> None:
    """A download that the client breaks off: fewer bytes than the file, and the hub goes on."""
    hub.add_repo("org/model", {"w.npy": random_bytes(30_000_000)})
    with httpx2.stream(
        "GET", f"{hub.endpoint}/org/model/resolve/main/w.npy", follow_redirects=True
    ) as answer:
        assert len(next(answer.iter_raw())) > 0
    last = next(seen for seen in hub.seen if seen.origin == "cdn")
    assert 0 < last.bytes_out < 30_000_000
    assert httpx2.get(f"{hub.endpoint}/api/models/org/model").status_code == 200


def test_what_broken_uploads_left_is_swept(tmp_path: Path) -> None:
    """Old temporary files go at the next start, young ones stay."""
    with DevHub(tmp_path / "root"):
        pass
    incoming = tmp_path / "root" / "objects" / "incoming"
    (incoming / "old").write_bytes(b"x")
    (incoming / "young").write_bytes(b"x")
    os.utime(incoming / "old", (0, 0))
    with DevHub(tmp_path / "root"):
        assert [file.name for file in incoming.iterdir()] == ["young"]


def test_odd_requests_do_not_hurt(hub: DevHub, fetch: Fetch) -> None:
    """Strange numbers, signatures, names and credentials are refused, never a 500."""
    hub.add_repo("org/model", {"a.txt": b"a"})
    huge = "9" * 40
    for method, path in (
        ("GET", f"/api/models/org/model/discussions/{huge}"),
        ("GET", f"/api/models/org/model/discussions?p={huge}"),
        ("GET", f"/api/models/org/model/revision/refs%2Fpr%2F{huge}"),
        ("POST", f"/api/models/org/model/commit/refs%2Fpr%2F{huge}"),
        ("GET", "/api/models/org/model/revision/%00"),
        ("GET", "/org/model/resolve/main/%FF%FE"),
        ("GET", "/org/model/resolve/main/..%2F..%2Fhub.sqlite"),
        ("GET", f"{hub.cdn}/lfs/org/model/{'0' * 64}/x?Signature=%C3%BC"),
        ("GET", f"{hub.cdn}/lfs/org/model/{'0' * 64}/x"),
    ):
        assert 400 <= fetch(method, path).status < 500, path
    for credentials in ("Bearer", "Basic x", "Basic //79", "Bearer grün"):
        answer = fetch("GET", "/api/whoami-v2", token="", headers={"Authorization": credentials.encode()})
        assert answer.status == 401, credentials


def test_without_its_extra() -> None:
    """Importing it without a package that it needs says which, and what to install; the cause is chained."""
    code = """
    import sys
    sys.modules["aiohttp"] = None
    try:
        from tensorport_hub.devhub import DevHub
    except ImportError as error:
        print(error, type(error.__cause__).__name__, error.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    assert "needs the package `aiohttp`: `pip install '.[devhub]'` in a clone" in done.stdout
    assert done.stdout.endswith("ModuleNotFoundError aiohttp\n")
