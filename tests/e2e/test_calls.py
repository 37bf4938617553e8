"""What the verbs take, and what they refuse before anything is asked of anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

import tensorport_hub
from tensorport_hub import convert, inspect, mirror, mirror_all, open_checkpoint, plan, verify
from tensorport_hub.batch import keys, read_orders
from tensorport_hub.cli import main
from tensorport_hub.core.orders import Order
from tensorport_hub.devhub import DevHub
from tensorport_hub.errors import DestinationError, SourceError, UseError
from tensorport_hub.ports import Begun, Event

MODEL = save({"w": np.arange(4, dtype=np.float32)})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a model of one tensor, also below `sub/`."""
    for folder in (tmp_path / "model", tmp_path / "model" / "sub"):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(MODEL)
    return tmp_path / "model"


def test_a_prompt_completes_the_verbs() -> None:
    """What is loaded when it is first used is shown before, and all that is shown is there."""
    assert {"mirror", "plan", "open_checkpoint"} <= set(dir(tensorport_hub))
    assert all(hasattr(tensorport_hub, name) for name in dir(tensorport_hub))


def test_paths_are_places(model: Path, tmp_path: Path) -> None:
    """Every verb takes `pathlib.Path` wherever it takes the name of a folder or a file."""
    page, out = tmp_path / "page.html", tmp_path / "out"
    assert plan(model, out).destination == str(out)
    assert mirror(model, out, report=page).destination == str(out)
    assert verify(out, against_source=True, source=model).ok
    assert inspect(model, report=page).parameters == 4
    assert convert(model, tmp_path / "two").changed
    assert mirror_all([Order(model, tmp_path / "three")]).ok  # type: ignore[arg-type]
    (tmp_path / "list.toml").write_text(f'[[mirror]]\nsource = "{model}"\ndestination = "{tmp_path}/four"\n')
    assert mirror_all(tmp_path / "list.toml").ok


def test_a_path_is_never_a_name_on_the_hub(
    hub: DevHub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path("me/out")` is a folder, there or not: nothing is published, and nothing read from the Hub."""
    monkeypatch.chdir(tmp_path)
    hub.add_repo("me/there", {"model.safetensors": MODEL})
    hub.forget()
    assert mirror(model, Path("me/out")).destination == str(tmp_path / "me" / "out")
    assert plan(Path("model"), Path("out")).destination == str(tmp_path / "out")
    assert mirror_all([Order(model, Path("me/two"))]).attempts[0].destination == str(tmp_path / "me" / "two")  # type: ignore[arg-type]
    assert verify(Path("me/out")).ok
    assert len(open_checkpoint(Path("me/out"))) == 1
    for verb, fault in ((inspect, SourceError), (open_checkpoint, SourceError), (verify, DestinationError)):
        with pytest.raises(fault, match="is no folder"):
            verb(Path("me/there"))
    assert hub.seen == []


def test_numbers_and_left_out_options(model: Path, tmp_path: Path) -> None:
    """A size may be a whole float, like `1e9`; globs may be None, which is none."""
    out = tmp_path / "out"
    found = plan(model, out, max_memory=1e9, include=None, exclude=None, allow_patterns=None)  # type: ignore[arg-type]
    assert (found.memory, found.tensors) == (1_000_000_000, 1)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_memory": 1.5}, "`1.5` is no size"),
        ({"max_memory": float("nan")}, "`nan` is no size"),
        ({"max_memory": float("inf")}, "`inf` is no size"),
        ({"max_memory": True}, "`True` is no size"),
        ({"max_memory": None}, "`None` is no size"),
        ({"max_disk": [1]}, "is no size"),
        ({"shard_size": b"1GB"}, "is no size"),
        ({"workers": "4"}, "workers must be a whole number and at least 1, got '4'"),
        ({"workers": 2.5}, "workers must be a whole number"),
        ({"workers": True}, "workers must be a whole number"),
        ({"workers": 0}, "at least 1, got 0"),
        ({"include": 3}, "`include` must be texts, got 3"),
        ({"exclude": ["a", 3]}, "`exclude` must be texts"),
        ({"allow_patterns": [None]}, "`allow-patterns` must be texts"),
        ({"format": 7}, "`format` must be texts"),
        ({"revision": 3}, "`revision` must be a text, got 3"),
        ({"revision": ""}, "revision is empty"),
        ({"branch": ""}, "is no branch"),
        ({"branch": 3}, "`branch` must be a text"),
        ({"subfolder": 3}, "`subfolder` must be a text"),
        ({"precision": 3}, "`3` is no precision"),
        ({"source": 3}, "`source` must be a text or a path, got 3"),
        ({"destination": b"me/b"}, "`destination` must be a text or a path"),
        ({"source": "./a\0b"}, "is the name of no folder: it holds a NUL"),
        ({"destination": "./a\0b"}, "is the name of no folder: it holds a NUL"),
    ],
)
def test_wrong_types_are_use_errors(hub: DevHub, given: dict[str, Any], words: str) -> None:
    """A value of the wrong kind is exit 2 in `plan`, `mirror` and a list, and no request is made."""
    hub.add_repo("org/a", {"model.safetensors": MODEL})
    hub.forget()
    places = {"source": "org/a", "destination": "me/b"}
    calls: list[Any] = [plan, mirror]
    for call in calls:
        with pytest.raises(UseError) as caught:
            call(**{**places, **given})
        assert words in caught.value.message
    order = {**places, **given}
    rest = {key: value for key, value in given.items() if key not in places}
    with pytest.raises(UseError) as caught:
        mirror_all([Order(order["source"], order["destination"], rest)])
    assert words in caught.value.message
    assert hub.seen == []


@pytest.mark.parametrize("branch", ["a b", "x..y", "x.lock", "x~1", "refs/pr/7", "refs/tags/v", "-x"])
@pytest.mark.parametrize("destination", ["me/out", "git+file:///absent/r.git"])
def test_a_branch_that_git_refuses(hub: DevHub, branch: str, destination: str) -> None:
    """No such branch: exit 2 before anything is asked, wherever the mirror goes."""
    hub.add_repo("org/a", {"model.safetensors": MODEL})
    hub.forget()
    with pytest.raises(UseError, match="is no branch"):
        mirror("org/a", destination, branch=branch)
    assert hub.seen == []


def test_a_whole_ref_is_its_branch(hub: DevHub) -> None:
    """`refs/heads/x`, as CI hands it on, publishes on `x` alone."""
    hub.add_repo("org/a", {"model.safetensors": MODEL})
    mirror("org/a", "me/out", branch="refs/heads/main")
    mirror("org/a", "me/out", branch="refs/heads/npy/v1", precision="float16")
    with pytest.raises(UseError, match="revision is empty"):
        verify("me/out", revision="")
    assert verify("me/out", revision="npy/v1").ok
    assert verify("me/out").ok


def test_two_subfolders(hub: DevHub, model: Path, tmp_path: Path) -> None:
    """`hf://org/a/sub` and another `subfolder` contradict each other: exit 2, nothing is asked."""
    hub.add_repo("org/a", {"sub/model.safetensors": MODEL, "two/model.safetensors": MODEL})
    hub.forget()
    out = tmp_path / "out"
    for verb in (inspect, lambda source, **how: plan(source, out, **how)):
        with pytest.raises(UseError, match="names subfolder `sub`, `--subfolder` names `two`"):
            verb("hf://org/a/sub", subfolder="two")
    with pytest.raises(UseError, match=r"mirror 1 .*names subfolder `sub`"):
        mirror_all([Order("hf://org/a/sub", str(out), {"subfolder": "two"})])
    assert hub.seen == []
    assert plan("hf://org/a/sub", out, subfolder="sub/").tensors == 1
    assert plan(model, out, subfolder="sub").tensors == 1


def test_a_subfolder_however_it_is_spelled(hub: DevHub, model: Path, tmp_path: Path) -> None:
    """One folder, one plan: what is written before and after its name changes nothing that is published."""
    hub.add_repo("org/a", model)
    told = {plan("org/a", tmp_path / "out", subfolder=s).plan.fingerprint for s in ("sub", "sub/", "/sub")}
    assert told == {plan("hf://org/a/sub", tmp_path / "out").plan.fingerprint}


class TestLists:
    """Several mirrors at once."""

    def test_a_callback_that_raises(self, hub: DevHub, caplog: pytest.LogCaptureFixture) -> None:
        """It is logged, all models are mirrored, and the result comes back."""
        for name in ("a", "b"):
            hub.add_repo(f"org/{name}", {"model.safetensors": MODEL})

        def broken(event: Event) -> None:
            if isinstance(event, Begun):
                raise ValueError("no display")

        result = mirror_all([Order("org/a"), Order("org/absent"), Order("org/b")], on_event=broken)
        assert [attempt.result is not None for attempt in result.attempts] == [True, False, True]
        assert "no display" in caplog.text

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            (Order("org/a", "me/x"), Order("org/b", "me/x", {"branch": "main"})),
            (Order("org/a", "me/x"), Order("org/b", "me/X", {"branch": "refs/heads/main"})),
            (Order("org/a", "me/x", {"branch": "v"}), Order("org/b", "me/x", {"branch": "refs/heads/v"})),
            (Order("org/a", "git+https://h/r.git"), Order("org/b", "git+https://h/r.git/")),
            (Order("org/a", "git+https://h/r.git"), Order("org/b", "git+https://h//r")),
            (Order("org/a", "git@h:r.git"), Order("org/b", "git@h:r.git/")),
        ],
    )
    def test_the_same_place_in_other_words(self, hub: DevHub, first: Order, second: Order) -> None:
        """Two orders for one place are refused however it is written; nothing is asked."""
        with pytest.raises(UseError, match=r"is the destination of mirror 1 .* already"):
            mirror_all([first, second])
        assert hub.seen == []

    def test_different_branches_are_different_places(self, hub: DevHub) -> None:
        """A place is a repository and a branch."""
        for name in ("a", "b"):
            hub.add_repo(f"org/{name}", {"model.safetensors": MODEL})
        orders = [Order("org/a", "me/x"), Order("org/b", "me/x", {"branch": "other"})]
        assert mirror_all(orders).ok

    def test_one_page_for_several_mirrors(self, hub: DevHub, tmp_path: Path) -> None:
        """A report for all would be overwritten by each: exit 2; each order may have its own."""
        hub.add_repo("org/a", {"model.safetensors": MODEL})
        page = tmp_path / "page.html"
        orders = [Order("org/a", "me/x"), Order("org/a", "me/y")]
        with pytest.raises(UseError, match="report"):
            mirror_all(orders, report=page)
        twice = [Order(order.source, order.destination, {"report": page}) for order in orders]
        with pytest.raises(UseError, match=r"mirror 2 .*`.*page\.html` is the report of mirror 1"):
            mirror_all(twice)
        assert not page.exists()
        assert mirror_all(twice[:1]).ok
        assert page.exists()

    def test_every_annotation_has_a_kind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A parameter of `mirror` that is annotated in a new way is an error, not a key that is missing."""
        monkeypatch.setitem(mirror.__annotations__, "precision", "str | bytes")
        with pytest.raises(KeyError, match="bytes"):
            keys()
        assert callable(read_orders)


def test_names_move_nobodys_cursor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever tensors are called, `inspect` prints a line for each, without commands or directions."""
    names = ["a\n::error::x", "b\u202egnp.weight", "c\x1b[31m", "d\r\n::set-output name=x::y"]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(save({name: np.zeros(2, np.float32) for name in names}))
    for words in ([], ["-v"], ["--exclude", "a*"], ["--exclude", "[bcd]*"]):
        with pytest.raises(SystemExit):
            main(["inspect", str(folder), *words])
        said = capsys.readouterr()
        for line in (said.out + said.err).split("\n"):
            assert line.isprintable()
            assert not line.startswith("::")
    with pytest.raises(SystemExit):
        main(["inspect", str(folder), "--json"])
    assert {tensor["name"] for tensor in json.loads(capsys.readouterr().out)["tensors"]} == set(names)


def test_files_with_such_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files whose names do that are no weights, exit 3, and don't travel."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(MODEL)
    (folder / "tokenizer\u202e.json").write_bytes(b"{}")
    convert(folder, tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if "tokenizer" in path.name]
    (folder / "model.safetensors").rename(folder / "a\n::error::b.safetensors")
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(folder)])
    assert ended.value.code == 3
    assert "\n::" not in capsys.readouterr().err
