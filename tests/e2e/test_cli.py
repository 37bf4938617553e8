"""The program as a user runs it: words in, text and exit codes out."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tensorport_hub import cli as program
from tensorport_hub.devhub import DevHub, Fault
from tests.e2e.conftest import CHECKPOINTS


def run(*words: str) -> int:
    """The program's exit code, in this process."""
    with pytest.raises(SystemExit) as ended:
        program.main(list(words))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` names every command; `-m tensorport_hub` is the same program."""
    assert run("--help") == 0
    said = capsys.readouterr().out
    for command in ("mirror", "plan", "convert", "inspect", "devhub", "demo"):
        assert re.search(rf"^  {command} ", said, re.MULTILINE)
    other = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", "--help"], capture_output=True, text=True, check=True
    )
    assert other.stdout == said


def test_mirror_prints_one_json_object(hub: DevHub, gptoss: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json`: one object on stdout, progress and warnings on stderr."""
    hub.add_repo("openai/tiny", gptoss)
    assert run("mirror", "openai/tiny", "me/tiny", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["destination"] == "me/tiny"
    assert result["changed"] is True
    assert result["commit_url"].endswith(result["commit"])
    assert result["totals"]["parameters"] == 58_372
    assert result["stats"]["peak_memory"] > 10_000_000


def test_plan_and_inspect_speak(hub: DevHub, gptoss: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`plan` and `inspect` answer for people and for programs, and agree on the parameters."""
    hub.add_repo("openai/tiny", gptoss)
    assert run("plan", "openai/tiny", "me/tiny") == 0
    said = capsys.readouterr().out
    assert "58,372 parameters" in said
    assert "read again" not in said
    assert "publishes    in one commit" in said
    assert "memory cap   1.00 GB" in said
    assert "in 20 files, 1 shard\n" in said
    assert run("plan", "openai/tiny", "me/tiny", "--experts", "stacked", "--format", "msgpack") == 0
    assert re.search(r"^read again +[\d.]+ kB \([\d.]+ %\), forced by order", capsys.readouterr().out, re.M)
    assert run("plan", "openai/tiny", "me/tiny", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["parameters"] == 58_372
    assert len(planned["files"]) == planned["parts"] == 20
    assert run("inspect", "openai/tiny") == 0
    said = capsys.readouterr().out
    assert re.search(r"mlp\.experts\.gate_up_proj +mxfp4 +U8 → BF16", said)
    assert run("inspect", "openai/tiny", "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["parameters"] == 58_372
    assert seen["schemes"] == {"plain": 18, "mxfp4": 2}


def test_a_folder_is_planned_and_written(
    hub: DevHub, gptoss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder has neither checkpoints nor commits, and is written to; where all stands, `plan` says that
    nothing is to be done, and `mirror` that it is unchanged."""
    hub.add_repo("openai/tiny", gptoss)
    words = ["openai/tiny", str(tmp_path / "out")]
    assert run("plan", *words) == 0
    said = capsys.readouterr().out
    assert "publishes    when all of it is there; an interrupted run continues\n" in said
    assert re.search(r"^reads .* from 1 file$", said, re.M)
    assert "checkpoint" not in said
    assert run("mirror", *words) == 0
    told = capsys.readouterr()
    assert told.out.endswith(f"\nwritten to: {tmp_path / 'out'}\n")
    assert told.err == f"written to {tmp_path / 'out'}\n"
    assert run("plan", *words) == 0
    said = capsys.readouterr().out
    assert "to do        nothing: the destination holds exactly this already\n" in said
    assert "reads" not in said
    assert "time" not in said
    assert run("mirror", *words) == 0
    told = capsys.readouterr()
    assert told.out.endswith(f"\nunchanged: {tmp_path / 'out'}\n")
    assert told.err == f"unchanged: {tmp_path / 'out'}\n"


def test_a_folder_is_called_by_its_name(
    hub: DevHub, gptoss: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`.` as the source: the mirror is named like the folder."""
    monkeypatch.chdir(gptoss)
    assert run("mirror", ".", "--json") == 0
    assert json.loads(capsys.readouterr().out)["destination"] == "me/gptoss-npy"


@pytest.mark.parametrize(
    ("endpoint", "meant"),
    [("127.0.0.1:7860", "http://127.0.0.1:7860"), ("hub.example", "https://hub.example")],
)
def test_an_endpoint_without_scheme(
    endpoint: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 2 at once, and what was meant; nothing is tried again."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert run("inspect", "openai/tiny") == 2
    said = capsys.readouterr().err
    assert f"hint: did you mean `{meant}`?" in said
    assert "waiting" not in said


def test_an_endpoint_that_is_empty() -> None:
    """As a workflow sets a variable that it was not given: the Hub itself."""
    ask = "from tensorport_hub.edge.hub_client import HubClient; print(HubClient().endpoint)"
    environment = {**os.environ, "HF_ENDPOINT": ""}
    said = subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True)
    assert said.stdout == "https://huggingface.co\n", said.stderr


def test_offline_asks_nothing(gptoss: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With `HF_HUB_OFFLINE` a model on the Hub is an error at once, which names it; folders need no Hub."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-m", "tensorport_hub", "mirror"]
    assert subprocess.run([*program, "openai/tiny", str(tmp_path / "x")], env=environment).returncode == 4
    said = "error: repository `openai/tiny` is not asked for: `HF_HUB_OFFLINE` is set\nhint: "
    assert capfd.readouterr().err.startswith(said)
    assert subprocess.run([*program, str(gptoss), str(tmp_path / "x")], env=environment).returncode == 0


def test_convert_makes_a_folder(gptoss: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`convert` decodes a local checkpoint into a local folder, without any Hub."""
    out = tmp_path / "out"
    assert run("convert", "--input", str(gptoss), "--output", str(out), "-q") == 0
    assert capsys.readouterr().out == ""
    assert (out / "manifest.json").is_file()
    assert len(list((out / "shard_000").iterdir())) == 20


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ["mirror"], "argument `SRC` is missing"),
        (2, ["plan"], "error: missing argument `SRC`\nhint: `tensorport-hub plan --help` says"),
        (
            2,
            ["mirror", "a/b", "--precison", "keep"],
            "such option `--precison`\nhint: did you mean `--precision`?",
        ),
        (
            2,
            ["mirror", "a/b", "--workers", "x"],
            "invalid value for `--workers`: `x` is not a valid integer\n",
        ),
        (2, ["mirror", "a/b", "--precision", "bf16"], "hint: did you mean `bfloat16`?"),
        (2, ["mirror", "a/b", "--format", "npz"], "hint: did you mean `numpy-direct`?"),
        (2, ["mirror", "a/b", "--transfer", "xeet"], "hint: did you mean `xet`?"),
        (2, ["mirror", "not a model", "./x"], "is no repository and no folder"),
        (
            2,
            ["mirror", "a/b", "c/d", "--precision", "int8"],
            "`int8` is no value of `--precision`: expected one of",
        ),
        (2, ["mirror", "a/b", "c/d", "--shard-size", "lots"], "is no size"),
        (2, ["mirror", "a/b", "c/d", "--shard-size", "3GB"], "allow-large-shards"),
        (2, ["mirror", "a/b", "c"], "has no owner"),
        (4, ["mirror", "/nowhere/at/all", "./x"], "is no folder"),
        (2, ["mirorr"], "error: no such command `mirorr`\nhint: did you mean `mirror`?"),
    ],
)
def test_wrong_use(code: int, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong words: exit 2 (4 where the source is missing), what is wrong, no traceback."""
    assert run(*words) == code
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mirror", "a/b", "--precison", "keep"], "no such option `--precison`"),
        (["plan", "a/b", "--precision", "half"], "`half` is no value of `--precision`"),
        (["mirror", "a/b", "c"], "destination `c` has no owner"),
        (["mirror"], "argument `SRC` is missing"),
        (["inspect"], "missing argument `SRC`"),
    ],
)
def test_wrong_use_in_json(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With `--json` whatever is wrong with the command line is one object of one form on stdout, exit 2."""
    assert run(*words, "--json") == 2
    told = json.loads(capsys.readouterr().out)
    assert told.keys() == {"error", "message", "hint", "exit_code"}
    assert (told["error"], told["exit_code"]) == ("UseError", 2)
    assert said in told["message"]
    assert told["hint"]


def test_an_error_in_json_is_of_the_one_tree(hub: DevHub, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever class an error has inside, programs are told of one of `errors`."""
    assert run("verify", "me/nothing", "--json") == 5
    assert json.loads(capsys.readouterr().out)["error"] == "DestinationError"


def test_an_unsupported_scheme_is_refused_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 3, every tensor of it at once, a hint, and nothing written."""
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "gptq"
    folder.mkdir()
    tensors = {
        f"layers.{i}.{name}": np.zeros((8, 8), np.int32) for i in range(2) for name in ("qweight", "qzeros")
    }
    save_file(tensors, folder / "model.safetensors")
    assert run("convert", "--input", str(folder), "--output", str(tmp_path / "out"), "--json") == 3
    captured = capsys.readouterr()
    for name in tensors:
        assert name in captured.err
    assert "hint: " in captured.err
    assert json.loads(captured.out)["exit_code"] == 3
    assert not (tmp_path / "out").exists()


def test_overflow_in_three_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--on-overflow`: error names tensor and count and writes nothing; inf and saturate do and count."""
    import numpy as np
    from safetensors.numpy import save_file

    folder, out = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    values = np.array([1.0, 65504.0, 65519.9, 65520.0, -1e6, np.inf, -np.inf, np.nan, 1e-9, -0.0], np.float32)
    save_file({"w": values}, folder / "model.safetensors")
    words = ["convert", "--input", str(folder), "--output", str(out), "--precision", "float16"]
    assert run(*words) == 7
    said = capsys.readouterr().err
    assert "2 finite values of `w` are too large for F16" in said
    assert not out.exists()
    for way, large in (("inf", np.inf), ("saturate", 65504.0)):
        assert run(*words, "--on-overflow", way) == 0
        made = np.load(out / "shard_000" / "w.npy")
        expected = np.array([1, 65504, 65504, large, -large, np.inf, -np.inf, np.nan, 0, -0.0], np.float16)
        assert made.tobytes() == expected.tobytes()
        losses = json.loads((out / "manifest.json").read_bytes())["tensors"]["w"]["losses"]
        assert losses == {"overflow": 2, "underflow": 1}
    assert run(*words, "--on-overflow", "inf", "--on-underflow", "error") == 7


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_it_within_seconds(
    hub: DevHub, minilm: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """SIGINT and SIGTERM, while a server is silent: the documented code, a word, nothing published."""
    hub.add_repo("st/minilm", minilm)
    hub.faults.add(Fault("stall", origin="cdn", at=1000, seconds=20, times=None, after=1))
    words = ["mirror", "st/minilm", "me/minilm"]
    started = subprocess.Popen(
        [sys.executable, "-m", "tensorport_hub", *words],
        env=dict(os.environ),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not hub.faults.fired:
        assert started.poll() is None
        time.sleep(0.05)
    begun = time.monotonic()
    started.send_signal(number)
    _, said = started.communicate(timeout=15)
    assert started.returncode == code
    assert time.monotonic() - begun < 10
    assert "interrupted" in said
    assert "Traceback" not in said
    assert list(hub.files("me/minilm")) == [".gitattributes"]


def test_step_summary(
    gptoss: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In GitHub Actions a Markdown summary is appended to the step's file."""
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert run("convert", "--input", str(gptoss), "--output", str(tmp_path / "out")) == 0
    assert "| 20 | 58,372 | 20 |" in summary.read_text()


@pytest.mark.parametrize("variable", ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"])
@pytest.mark.parametrize("form", ["one", "list"])
def test_files_of_a_step_that_can_not_be_written(
    gptoss: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    form: str,
) -> None:
    """Where the runner's files are not to be had, as in a container, that is a warning: what was made is
    made, and the code of an error is its own."""
    out, listed = tmp_path / "out", tmp_path / "list.toml"
    listed.write_text(f'[[mirror]]\nsource = "{gptoss}"\ndestination = "{out}"\n')
    monkeypatch.setenv(variable, str(tmp_path / "not" / "there"))
    words = ["mirror", str(gptoss), str(out)] if form == "one" else ["mirror", "--from-file", str(listed)]
    assert run(*words) == 0
    warned = f"warning: `{variable}` names `{tmp_path}/not/there`, which can't be written: No such file"
    assert (warned in capsys.readouterr().err) == (form == "one" or variable == "GITHUB_STEP_SUMMARY")
    assert (out / "manifest.json").exists()
    assert run("mirror", str(tmp_path / "nowhere"), str(out)) == 4


def test_demo_runs(tmp_path: Path) -> None:
    """`demo` does what the README says, and leaves nothing but what `--keep` asks for."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = {**os.environ, "TMPDIR": str(scratch), "HF_HOME": str(scratch / "home")}
    for key in ("HF_ENDPOINT", "HF_TOKEN", "HF_XET_CACHE"):
        environment.pop(key, None)
    done = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", "demo", "--keep", str(tmp_path / "kept")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "every sha256 as in manifest.json" in done.stdout
    assert "equal, bit for bit" in done.stdout
    assert (tmp_path / "kept" / "manifest.json").is_file()
    assert [p for p in scratch.rglob("*") if p.is_file() and "tensorport" in p.name] == []


def test_demo_keeps_off_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--keep` takes an empty folder alone: else exit 5 before anything runs, and everything stays."""
    mine = tmp_path / "mine" / "README.md"
    mine.parent.mkdir()
    mine.write_text("precious")
    monkeypatch.setattr("tensorport_hub.demo.tiny_gpt_oss", None)  # it would be called first of all
    for keep, word in ((mine.parent, "is not empty"), (mine, "can't be made a folder")):
        assert run("demo", "--keep", str(keep)) == 5
        said = capsys.readouterr()
        assert word in said.err
        assert "hint: choose an empty folder" in said.err
        assert said.out == ""
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["precious"]


def test_devhub_serves_what_was_added(tmp_path: Path) -> None:
    """`devhub add` seeds a stopped devhub; `devhub` prints what to export, serves it, and stops on SIGINT."""
    root = tmp_path / "root"
    base = [sys.executable, "-m", "tensorport_hub", "devhub", "--root", str(root)]
    subprocess.run([*base, "add", "org/tiny", str(CHECKPOINTS / "gptoss_mxfp4")], check=True)
    served = subprocess.Popen([*base, "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert served.stdout is not None
    line = served.stdout.readline()
    match = re.search(r"HF_ENDPOINT=(\S+) HF_TOKEN=(\S+)", line)
    assert match is not None, line
    environment = {**os.environ, "HF_ENDPOINT": match.group(1), "HF_TOKEN": match.group(2)}
    words = ["inspect", "org/tiny", "--json"]
    seen = subprocess.run(
        [sys.executable, "-m", "tensorport_hub", *words], env=environment, capture_output=True, check=True
    )
    assert json.loads(seen.stdout)["parameters"] == 58_372
    served.send_signal(signal.SIGINT)
    assert served.wait(15) == 0


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> str:
    """What `devhub` says where it exits with `code`: an error and a hint, no traceback."""
    assert run("devhub", *words) == code
    said = capsys.readouterr().err
    assert said.startswith(("error: ", "Usage: "))
    assert ("hint: " in said) or said.startswith("Usage: ")
    assert "Traceback" not in said
    return said


def test_devhub_says_what_it_can_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A root that is served, a port that is taken, and a root that can't be one end with 5, in words."""
    with DevHub(tmp_path / "root") as hub:
        port = hub.endpoint.rpartition(":")[2]
        other = str(tmp_path / "other")
        said = refused(capsys, 5, "--root", str(tmp_path / "root"), "--port", "0")
        assert "another devhub serves" in said
        said = refused(capsys, 5, "--root", other, "--port", port)
        assert f"127.0.0.1:{port}`: Address already in use" in said
        assert "0 picks a free one" in said
        cdn = hub.cdn.rpartition(":")[2]
        assert cdn in refused(capsys, 5, "--root", other, "--port", "0", "--cdn-port", cdn)
    assert "65536" in refused(capsys, 2, "--root", other, "--port", "65536")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "hub.sqlite").write_text("this is no database, whatever it is called; " * 9)
    for root in ("file", "file/below", "odd"):
        words = ["--root", str(tmp_path / root)]
        assert "can't be a devhub's folder" in refused(capsys, 5, *words, "--port", "0")
        assert "can't be a devhub's folder" in refused(
            capsys, 5, *words, "add", "me/x", str(tmp_path / "odd")
        )


def test_devhub_add_says_what_it_can_not_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name without an owner, a missing folder, and files that can't be read or named end with 2."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    base = ["--root", str(tmp_path / "root"), "add"]
    assert "for instance me/small" in refused(capsys, 2, *base, "small", str(model))
    assert "does not exist" in refused(capsys, 2, *base, "me/small", str(tmp_path / "none"))
    (model / "gone.bin").symlink_to(tmp_path / "nowhere")
    assert "gone.bin` can't be read" in refused(capsys, 2, *base, "me/small", str(model))
    (model / "gone.bin").unlink()
    (model / "two\nlines").write_text("")
    assert "Invalid path" in refused(capsys, 2, *base, "me/small", str(model))
    token = ["--root", str(tmp_path / "root"), "token"]
    assert "no name of a user" in refused(capsys, 2, *token, "a/b")


def test_devhub_token_opens_private_and_gated_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `add --private` and `--gated` closed is read with me/ names, by members, and by who was let in."""
    root, model = str(tmp_path / "root"), str(CHECKPOINTS / "gptoss_mxfp4")
    for words in (["me/priv", "--private"], ["org/priv", "--private"], ["org/gated", "--gated"]):
        assert run("devhub", "--root", root, "add", words[0], model, *words[1:]) == 0
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with DevHub(root) as hub:

        def reads(token: str, *names: str) -> list[str]:
            return [name for name in names if run("inspect", name, "--token", token) == 0]

        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        every = ["me/priv", "org/priv", "org/gated"]
        assert reads(hub.token, *every) == ["me/priv"]
        capsys.readouterr()
        assert run("devhub", "token", "guest", "--gated", "org/gated", "--root", root) == 0
        assert reads(capsys.readouterr().out.strip(), *every) == ["org/gated"]
        assert run("devhub", "--root", root, "token", "me", "--org", "org") == 0
        assert reads(hub.token, *every) == every


def test_devhub_demo_is_seeded_once(tmp_path: Path) -> None:
    """`devhub --demo` holds the model of `demo`, at the same commit after another start."""
    commits = []
    for _ in range(2):
        command = [sys.executable, "-m", "tensorport_hub", "devhub", "--root", str(tmp_path), "--port", "0"]
        served = subprocess.Popen(
            [*command, "--demo"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert served.stdout is not None
        served.stdout.readline()
        served.send_signal(signal.SIGINT)
        assert served.wait(15) == 0
        with DevHub(tmp_path) as hub:
            commits.append([commit.oid for commit in hub.commits("openai-demo/gpt-oss-tiny")])
            assert hub.read("openai-demo/gpt-oss-tiny", "config.json")
    assert commits[0] == commits[1]
