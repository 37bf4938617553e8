"""The model card: front matter that the Hub's client reads, and text that no hostile name breaks out of."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core import card
from tensorport_hub.core.decode.cast import Losses
from tensorport_hub.core.plan import Options, Plan
from tests.core.samples import COMMIT, plan_of

SOURCE = {
    "license": "apache-2.0",
    "license_name": "llama3",
    "license_link": "LICENSE",
    "pipeline_tag": "text-generation",
    "language": ["en", "de"],
    "tags": ["vllm", "numpy", "vllm"],
    "base_model": "someone/else",
    "base_model_relation": "finetune",
    "library_name": "transformers",
    "model-index": [{"name": "x"}],
    "datasets": ["a/b"],
    "extra_gated_prompt": "You agree",
}


def example(**options: Any) -> Plan:
    files = {
        "m.safetensors": [
            ("x_blocks", "U8", (2, 3, 2, 16)),
            ("x_scales", "U8", (2, 3, 2)),
            ("norm.weight", "BF16", (7,)),
            ("position_ids", "I64", (1, 4)),
        ]
    }
    return plan_of(files, **options)


def made(plan: Plan, source: dict[str, Any] | None = None, losses: dict[int, Losses] | None = None) -> str:
    return card.build(plan, source_card=source or {}, losses=losses or {}).decode("utf-8")


def front(text: str) -> dict[str, Any]:
    """The front matter, as the Hub's own client reads it."""
    return ModelCard(text, ignore_metadata_errors=False).data.to_dict()


def test_the_hubs_client_reads_the_front_matter():
    """Relation and library are always ours, licence, language and task are the source's, tags are joined."""
    data = front(made(example(), SOURCE))
    assert data == {
        "license": "apache-2.0",
        "license_name": "llama3",
        "license_link": "LICENSE",
        "pipeline_tag": "text-generation",
        "language": ["en", "de"],
        "base_model": "org/model",
        "base_model_relation": "quantized",
        "library_name": "tensorport-hub",
        "tags": ["numpy", "jax", "tensorport-hub", "vllm"],
    }


@pytest.mark.parametrize("repo", ["org/model", "gpt2", "null/no", None])
@pytest.mark.parametrize("source", [{}, SOURCE])
def test_the_relation_is_there_where_a_base_model_is(repo, source):
    """`base_model_relation: quantized` goes with `base_model`; a local source has neither."""
    data = front(made(replace(example(), repo=repo), source))
    assert data.get("base_model_relation") == ("quantized" if repo else None)
    assert data["library_name"] == "tensorport-hub"
    assert data.get("base_model") == repo


HOSTILE = [
    None,
    "",
    5,
    1.5,
    True,
    [],
    {},
    {"a": "b"},
    [1],
    ["en", None],
    ["en", ["x"]],
    [{"en": 1}],
]


@pytest.mark.parametrize("key", ["license", "license_name", "license_link", "pipeline_tag", "language"])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
def test_values_that_are_no_texts_are_dropped(key, value):
    """Numbers, nested values and empty ones of a source card are left out, the others stay."""
    data = front(made(example(), {**SOURCE, key: value}))
    assert key not in data
    assert {k for k in ("license", "language") if k != key} <= set(data)


@pytest.mark.parametrize("tags", [None, "text", 5, {"a": 1}, [], [1, None, ["x"], {}]])
def test_odd_tags_leave_ours(tags):
    """Whatever a source card has as tags, ours are there and only texts join them."""
    assert front(made(example(), {"tags": tags}))["tags"] == ["numpy", "jax", "tensorport-hub"]


TEXTS = [
    "a: b\n---\n# injected",
    "---",
    "\n---\n",
    "'\"`",
    "{{ x }}",
    "!!python/object:os.system",
    "&a *a",
    "\ud800",
    "a\x85---\x85b",
    "a\u2028---\u2029b",
    "x" * 5000,
    "yes",
    "null",
    "1e3",
    "2024-01-01",
    "ünï 漢字 🤗",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
@pytest.mark.parametrize("key", ["license", "license_link", "language", "tags"])
def test_hostile_texts_stay_texts(key, text):
    """A text of any content is quoted so that it reads back as that very text and ends nothing early."""
    value = [text] if key in ("tags", "language") else text
    content = made(example(), {key: value})
    parts = content.split("---\n", 2)
    assert parts[0] == ""
    data = yaml.safe_load(content[4 : content.index("\n---\n\n# model as plain arrays") + 1])
    same = text.replace("\x85", " ")  # YAML folds this line break, wherever it stands
    expected = {"tags": ["numpy", "jax", "tensorport-hub", same], "language": [same]}
    assert data[key] == expected.get(key, same)
    assert data["base_model_relation"] == "quantized"
    if "\ud800" not in text:
        assert front(content)["base_model"] == "org/model"


def test_it_says_what_is_in_it():
    """dtype and decoding table, size table, source commit, how to load, how to verify, the same command."""
    plan = example(precision="float16", shard_size=10**6)
    text = made(plan)
    assert f"`{COMMIT}`" in text
    assert "https://huggingface.co/org/model" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert "| BF16 → F16 | as stored, rounded once | 1 | 7 | 142 B |" in rows
    assert "| U8 → F16 | mxfp4 decoded, rounded once | 1 | 384 | 896 B |" in rows
    assert "| I64 | as stored | 1 | 0 | 160 B |" in rows
    assert "| **all** | | 3 | 391 | 1.20 kB |" in rows
    assert plan.outputs[0].path in text
    assert "jnp.load" in text
    assert "manifest.json" in text
    assert text.isprintable() or set(text) - {"\n"} == {c for c in text if c.isprintable()}
    assert "What rounding cost" not in text


def test_the_snippets_are_python():
    """The code that the card shows parses, and names the first part's path and a tensor."""
    ours, plain = re.findall(r"```python\n(.*?)```", made(example()), re.DOTALL)
    for code in (ours, plain):
        compile(code, "card", "exec")
    assert "load_params(" in ours
    assert 'open_checkpoint("OWNER/NAME")["x"][:8]' in ours
    assert f'"{example().outputs[0].path}"' in plain


@pytest.mark.parametrize("name", ['"]; import os; x["', "```", "a\nb", "ünï", "\\"], ids=ascii)
def test_only_plain_names_get_into_code(name):
    """A name that would need quoting stays out of the code, which is python all the same."""
    text = made(plan_of({"m.safetensors": [(name, "F32", (3,))]}))
    ours, plain = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in (ours, plain):
        compile(code, "card", "exec")
    assert 'open_checkpoint("OWNER/NAME")  # name' in ours


def test_without_parts_there_is_nothing_to_load():
    """An empty mirror has a card all the same."""
    plan = replace(example(), outputs=(), recipes=())
    text = made(plan)
    assert "Load it" not in text
    assert front(text)["base_model_relation"] == "quantized"


NAMES = [
    "a|b",
    "a`b",
    "``` \n# injected\n<script>x</script>",
    "[x](http://example.org)",
    "a\\|b",
    "<img src=x>",
    "a\r\n| c | 1 | 2 |",
    "\u2028# x",
    "*_~" * 1000,
    "\0",
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_names_with_metacharacters_break_no_table(name):
    """A tensor's name stays in its cell, whatever Markdown or HTML it holds."""
    plan = plan_of({"m.safetensors": [(name, "F32", (3,)), ("plain.name", "F32", (3,))]}, precision="float16")
    text = made(plan, losses={0: Losses(1, 2), 1: Losses(0, 7)})
    section = text.partition("## What rounding cost\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert rows[3] == "| `plain.name` | 0 | 7 |"
    assert re.fullmatch(r"\| `[A-Za-z0-9._%~ ()-]+` \| 1 \| 2 \|", rows[2])
    assert len(rows[2]) < 300
    assert "injected" not in text.replace("%20injected%", "")
    assert "<" not in section
    assert "](http://example" not in text


def test_losses_are_counted_per_tensor():
    """Fifty tensors are listed, the others are counted; the option that was chosen is named."""
    stored = [(f"t{i}", "F32", (3,)) for i in range(70)]
    plan = plan_of({"m.safetensors": stored}, precision="float16", on_overflow="inf")
    text = made(plan, losses={i: Losses(1000, i) for i in range(70)})
    assert "| `t49` | 1,000 | 49 |" in text
    assert "`t50`" not in text
    assert "and 20 more tensors" in text
    assert "(`inf`)" in text
    assert "more tensors" not in made(plan, losses={i: Losses(1, 0) for i in range(50)})


def test_equal_plans_give_equal_cards():
    """No clock, no user, no machine; the order in which losses came does not show."""
    plan = example(precision="float16")
    one = made(plan, SOURCE, {0: Losses(1, 1), 1: Losses(2, 2)})
    assert made(plan, SOURCE, {1: Losses(2, 2), 0: Losses(1, 1)}) == one
    assert os.getcwd() not in one
    assert os.uname().nodename not in one
    assert not re.search(r"\b20\d\d-\d\d-\d\d\b", one)


# --- the command ---


def test_the_plain_command():
    """With defaults the command names source and commit alone; a folder has none."""
    assert card.reproduce(example()) == f"tensorport-hub mirror org/model@{COMMIT}"
    assert card.reproduce(replace(example(), repo=None)) is None
    assert "```sh" not in made(replace(example(), repo=None))


def test_the_command_says_every_option_again():
    """Read by the command line's own parser, the command gives the very options of the plan."""
    import click

    from tensorport_hub.cli import main

    options = Options(
        subfolder="a b",
        allow_patterns=("*.safetensors", "x y"),
        precision="float16",
        on_overflow="inf",
        on_underflow="error",
        shard_size=12345,
        include=("a*", "it's"),
        exclude=("$HOME", "-x"),
        verify_source="whole",
        formats=("msgpack", "safetensors"),
        experts="stacked",
    )
    words = shlex.split(card.reproduce(replace(example(), options=options)) or "")
    assert words[:2] == ["tensorport-hub", "mirror"]
    group = main if isinstance(main, click.Group) else None
    if group is None:
        from tensorport_hub import cli

        group = next(v for v in vars(cli).values() if isinstance(v, click.Group))
    context = group.commands["mirror"].make_context("mirror", words[2:])
    given_ = context.params
    assert [v for v in given_.values() if v == f"org/model@{COMMIT}"]
    given_["formats"] = given_["format"]
    for key, value in vars(options).items():
        assert str(given_[key]) == str(value)


# --- reading the source's card ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("# no front matter", {}),
        ("---\nlicense: mit\n---\n# x", {"license": "mit"}),
        ("---\r\nlicense: mit\r\n---\r\n# x", {"license": "mit"}),
        ("\ufeff---\nlicense: mit\n---\n", {"license": "mit"}),
        ("---\nlicense: mit\n", {}),
        ("---\n---\n", {}),
        ("---\n- a\n- b\n---\n", {}),
        ("---\ntext\n---\n", {}),
        ("---\na: [\n---\n", {}),
        ("---\na: b\n---\nc: d\n---\n", {"a": "b"}),
        ("text\n---\na: b\n---\n", {}),
    ],
)
def test_front_matter_is_read(text, expected):
    """The block between the first two lines of dashes; what is no valid mapping is nothing."""
    assert card.read_front_matter(text) == expected


@pytest.mark.parametrize(
    "scalar",
    [
        "!!int ''",
        "!!float ''",
        "!!bool x",
        "!!timestamp foo",
        "2024-99-99",
        "!!binary é",
        "!!python/object:os.system x",
        "!!python/object/apply:os.system [true]",
        "&x [*x]",
        "9" * 5000,
        "[" * 3000,
        "{a: " * 3000,
        "\x00",
        "? [a]\n  : b",
        "<<: 3",
        "*nowhere",
    ],
)
def test_odd_yaml_is_no_crash(scalar):
    """Scalars on which the YAML library itself stumbles make an empty card, or a value; code never runs."""
    found = card.read_front_matter(f"---\nx: {scalar}\n---\n")
    assert isinstance(found, dict)
    assert front(made(example(), found))["base_model_relation"] == "quantized"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40) | st.text(st.sampled_from("a:-[]{}!&*'\"|>?%@` \n0.x_#<~"), max_size=30))
def test_any_readme_gives_a_card(text):
    """Whatever a source's README holds, our card is valid and says its relation."""
    found = card.read_front_matter(f"---\n{text}\n---\nbody")
    assert isinstance(found, dict)
    keyed = card.read_front_matter(f"---\nlicense: {text}\ntags: [{text}]\n---\n")
    for source in (found, keyed):
        assert front(made(example(), source))["base_model_relation"] == "quantized"


def test_aliases_do_not_multiply():
    """A card whose aliases stand for billions of texts costs nothing, and adds nothing."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join(f'*{before}' for _ in range(9))}]")
    found = card.read_front_matter("---\n" + "\n".join([*lines, "tags: *i", "language: *i"]) + "\n---\n")
    text = made(example(), found)
    assert len(text) < 5000
    assert "language" not in front(text)


@pytest.mark.parametrize(("stated", "kept"), [([False, "en"], ["no", "en"]), (False, "no"), ("nb", "nb")])
def test_norwegian_is_a_language(stated, kept):
    """YAML reads `language: no` as false; the card still says `no`."""
    text = card.build(
        plan_of({"a.safetensors": [("w", "F32", (2,))]}), source_card={"language": stated}, losses={}
    )
    assert card.read_front_matter(text.decode())["language"] == kept
