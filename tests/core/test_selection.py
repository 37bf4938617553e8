"""Which files are the model, which travel, and which are never touched."""

from __future__ import annotations

import gzip
import pickle
from time import process_time

import pytest

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.selection import (
    CARRIED_LIMIT,
    Selection,
    carried_name,
    is_doubtful,
    is_foreign,
    select,
)
from tensorport_hub.errors import CheckpointError, UseError

INDEX = "model.safetensors.index.json"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
GPT_OSS = [
    *("LICENSE", "README.md", "USAGE_POLICY", "chat_template.jinja", "config.json", "dtypes.json"),
    *("generation_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"),
    *(f"model-0000{i}-of-00002.safetensors" for i in range(3)),
    INDEX,
    *("metal/model.bin", "metal/model.safetensors", "metal/config.json"),
    *(f"original/model--0000{i}-of-00002.safetensors" for i in (1, 2)),
    *("original/config.json", "original/dtypes.json", f"original/{INDEX}"),
]
DIFFUSERS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
]


def pick(paths, **how) -> Selection:
    return select([SourceFile(path, 10) for path in paths], **how)


def names(chosen: Selection) -> list[str]:
    """The index that is followed, or the weight files."""
    return [chosen.index.path] if chosen.index else [f.path for f in chosen.weights]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["weights.safetensors"], ["weights.safetensors"]),
        ([*SHARDS, INDEX], [INDEX]),
        ([*SHARDS, "other.safetensors.index.json"], ["other.safetensors.index.json"]),
        ([*SHARDS, INDEX, "other.safetensors.index.json"], [INDEX]),
        ([*SHARDS, INDEX, "model.safetensors"], [INDEX]),
        (["model.safetensors", "other.safetensors"], ["model.safetensors"]),
        (SHARDS, SHARDS),
        (SHARDS[::-1], SHARDS),
        ([*SHARDS, "consolidated.safetensors"], SHARDS),
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["weights.safetensors", "weights.fp16.safetensors"], ["weights.safetensors"]),
        (["x.safetensors", "x.non_ema.safetensors", "x.bf16.safetensors"], ["x.safetensors"]),
        (["model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["model.safetensors", "consolidated.safetensors"], ["model.safetensors"]),
        (["consolidated.safetensors"], ["consolidated.safetensors"]),
        (["model.safetensors", "consolidated.safetensors.index.json"], ["model.safetensors"]),
        (["model.safetensors", "model.fp16.safetensors.index.json"], ["model.safetensors"]),
        (["model.safetensors", "adapter_model.safetensors.index.json"], ["model.safetensors"]),
        ([*SHARDS, "consolidated.safetensors.index.json"], SHARDS),
        ([*SHARDS, INDEX, "model.fp16.safetensors.index.json"], [INDEX]),
        (["model.safetensors", "adapter_model.safetensors"], ["model.safetensors"]),
        (["base.safetensors", "adapter_model.safetensors"], ["base.safetensors"]),
        (["adapter_model.safetensors"], ["adapter_model.safetensors"]),
        ([*SHARDS, "lora/adapter_model.safetensors"], SHARDS),
        (GPT_OSS, [INDEX]),
        ([p for p in GPT_OSS if p != INDEX and "00000" not in p], SHARDS),
    ],
)
def test_the_model_by_rule(paths, expected):
    """Index before single file before numbered set; the plain name first; second choices last."""
    assert names(pick(paths)) == expected


def test_other_candidates_are_told():
    """What the rules passed over is listed; with an index, its other shards are no candidates."""
    assert pick(["model.safetensors", "model.fp16.safetensors"]).passed_over == ("model.fp16.safetensors",)
    assert pick([*SHARDS, INDEX]).passed_over == ()


@pytest.mark.parametrize(
    "paths",
    [
        ["a.safetensors", "b.safetensors"],
        ["a.safetensors.index.json", "b.safetensors.index.json"],
        [*SHARDS[:1], "other.safetensors"],
        ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"],
        ["a-00001-of-00002.safetensors", "b-00002-of-00002.safetensors"],
        ["a-00001-of-00002.safetensors", "a-00002-of-00003.safetensors"],
        ["a-00001-of-00002.safetensors", "a-000001-of-000002.safetensors"],
        ["a-00000-of-00002.safetensors", "a-00001-of-00002.safetensors"],
        ["consolidated.safetensors", "adapter_model.safetensors"],
        ["model.fp16.safetensors", "model.bf16.safetensors"],
    ],
)
def test_what_no_rule_decides_is_an_error(paths):
    """Several candidates are all named, with the options that choose."""
    with pytest.raises(CheckpointError, match="several models could be meant") as caught:
        pick(paths)
    assert all(f"`{path}`" in caught.value.message for path in paths)
    assert "--allow-patterns" in caught.value.hint


@pytest.mark.parametrize("paths", [[], ["model.bin", "config.json"], ["unet/model.safetensors"]])
def test_no_model_is_an_error(paths):
    """Without a safetensors file in the folder there is no model; the hint says where some lie."""
    with pytest.raises(CheckpointError, match="no safetensors model") as caught:
        pick(paths)
    assert ("`unet`" in caught.value.hint) == (paths == ["unet/model.safetensors"])


def test_diffusers_components_are_chosen_by_subfolder():
    """Nothing lies at the top; a component's plain file is chosen, its variant only by pattern."""
    with pytest.raises(CheckpointError) as caught:
        pick(DIFFUSERS)
    assert "`text_encoder`, `unet`" in caught.value.hint
    unet = pick(DIFFUSERS, subfolder="unet")
    assert names(unet) == ["unet/diffusion_pytorch_model.safetensors"]
    assert unet.passed_over == ("unet/diffusion_pytorch_model.fp16.safetensors",)
    assert [f.path for f in unet.carried] == ["unet/config.json"]
    variant = pick(DIFFUSERS, subfolder="unet/", allow_patterns=["*.fp16.safetensors"])
    assert names(variant) == ["unet/diffusion_pytorch_model.fp16.safetensors"]


def test_patterns_choose():
    """Several matching files without an index are the model together; a matching index is followed."""
    assert names(pick(["a.safetensors", "b.safetensors", "c.safetensors"], allow_patterns=["[ab].*"])) == [
        "a.safetensors",
        "b.safetensors",
    ]
    assert names(pick([*SHARDS, INDEX], allow_patterns=["model*"])) == [INDEX]
    assert names(pick([*SHARDS, INDEX], allow_patterns=["*.safetensors"])) == SHARDS
    assert names(pick(DIFFUSERS, allow_patterns=["unet/*model.safetensors"])) == [
        "unet/diffusion_pytorch_model.safetensors"
    ]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"subfolder": "vae"}, "subfolder `vae`"),
        ({"subfolder": "../unet"}, "subfolder `../unet`"),
        ({"subfolder": "une"}, "subfolder `une`"),
        ({"allow_patterns": ["*.bin"]}, "no safetensors file matches `*.bin`"),
        ({"subfolder": "unet", "allow_patterns": ["text_encoder/*"]}, "no safetensors file matches"),
    ],
)
def test_a_choice_of_nothing_is_a_use_error(how, words):
    """A subfolder or pattern that names nothing is the caller's mistake; the hint lists what there is."""
    with pytest.raises(UseError) as caught:
        pick(DIFFUSERS, **how)
    assert words in caught.value.message
    assert "`unet`" in caught.value.hint


def test_the_hint_says_where_weights_lie():
    """The top level is no folder, and `--subfolder` is of use only where there is one."""
    with pytest.raises(UseError) as caught:
        pick(["model.safetensors"], allow_patterns=["*.bin"])
    assert caught.value.hint == "safetensors files lie at the top level"
    with pytest.raises(UseError) as caught:
        pick(["model.safetensors", "unet/a.safetensors"], allow_patterns=["*.bin"])
    assert caught.value.hint == "safetensors files lie at the top level and in `unet`; see `--subfolder`"


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"allow_patterns": ["*.safetensors"]},
        {"allow_patterns": ["*"]},
        {"allow_patterns": ["model-*", "original/*", "metal/*"]},
    ],
)
def test_original_and_metal_are_never_read(how):
    """The second and third copy of gpt-oss stay untouched, even where a pattern would match them."""
    chosen = pick(GPT_OSS, **how)
    touched = names(chosen) + [f.path for f in chosen.carried]
    assert touched
    assert not any(path.startswith(("original/", "metal/")) for path in touched)


@pytest.mark.parametrize("folder", ["original", "metal", "original/"])
def test_original_and_metal_can_not_be_asked_for(folder):
    """Asking for them by name is a use error that says why."""
    with pytest.raises(UseError, match="never read"):
        pick(GPT_OSS, subfolder=folder)


CARRIED = [
    *(
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "config_sentence_transformers.json",
    ),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json"),
    *("vocab.txt", "merges.txt", "special_tokens_map.json", "added_tokens.json", "tekken.tiktoken"),
    *(
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "modules.json",
    ),
    *("1_Pooling/config.json", "2_Normalize/config.json", "hf_quant_config.json"),
    *(
        "tokenizer.model.v3",
        "tokenizer-vocab.tiktoken",
        "vocab.bpe",
        "vocab.spm",
        "vocab",
        "chat_template.txt",
    ),
    *(
        "LICENSE",
        "LICENSE.txt",
        "LICENCE.md",
        "NOTICE",
        "USE_POLICY.md",
        "USAGE_POLICY",
        "COPYING",
        "THIRD_PARTY_NOTICES",
    ),
]
LEFT = [
    *("README.md", ".gitattributes", "manifest.json", "model.bin", "pytorch_model.bin", "model.gguf"),
    *("modeling_x.py", "tokenizer.py", "tokenization.py", "tokenizer.pkl", "tokenizer.pickle", "vocab.pt"),
    *(
        "model.onnx",
        "onnx/model.onnx",
        "onnx/config.json",
        "original/config.json",
        "original/tokenizer.model",
    ),
    *("metal/config.json", "tf_model.h5", "flax_model.msgpack", "training_args.bin", "x.safetensors"),
    *("TOKENIZER.BIN", "tokenizer.SAFETENSORS", "a/b/config.json", "sub/tokenizer.json", "other/LICENSE"),
    *("1_Pooling/deep/config.json", "1_Pooling/model.py", "events.out.tfevents.1", "LICENSE/secret.txt"),
    *("../config.json", "/config.json", "./config.json", "tokenizer\\..\\x", "tokenizer:x", "config.json\n"),
    *("a/../tokenizer.json", "tokenizer\0.json", "..", "tokenizer/", "LICENSE/../../x"),
    *("tokenizer.joblib", "tokenizer.p", "tokenizer.dill", "vocab.ckpt", "vocab.npy", "vocab.pth.tar"),
    *("tokenizer_ema.pt2", "chat_template.so", "tokenizer.model.pkl", "tokenizer.json.gz", "vocab.pb"),
]


def test_small_files_travel():
    """Configuration, tokenizer, chat template, preprocessor and licence files travel, and nothing else."""
    chosen = pick(["model.safetensors", *CARRIED, *LEFT])
    assert sorted(f.path for f in chosen.carried) == sorted(CARRIED)


@pytest.mark.parametrize(
    ("begins", "foreign"),
    [
        (pickle.dumps({"a": 1}, protocol=2), True),
        (pickle.dumps({"a": 1}, protocol=4), True),
        (pickle.dumps({"a": 1}, protocol=5), True),
        (b"PK\x03\x04", True),
        (b"\x7fELF\x02", True),
        (gzip.compress(b"a", mtime=0), True),
        (b"MZ\x90\x00", True),
        (b"\n\x0e\n\x05<unk>", False),
        (b"IQ== 0\nIg== 1", False),
        (b"MZ== 0\nIg== 1", False),
        (b"", False),
    ],
)
def test_contents_that_never_travel(begins, foreign):
    """Pickles, archives and programs are told by their first bytes; SentencePiece and tiktoken are none."""
    assert is_foreign(begins[:8]) is foreign


def test_names_that_say_nothing_of_the_contents():
    """`*.model` may be a pickle, and what has no ending anything; texts are read as texts."""
    assert [name for name in CARRIED if is_doubtful(name)] == [
        *("tokenizer.model", "sentencepiece.bpe.model", "tokenizer.model.v3", "vocab.spm", "vocab"),
    ]
    assert is_doubtful("LICENSE.joblib")


def test_a_large_file_does_not_travel():
    """A file of a small file's name but not of its size stays behind."""
    files = [SourceFile("model.safetensors", 10), SourceFile("vocab.json", CARRIED_LIMIT + 1)]
    files.append(SourceFile("tokenizer.json", CARRIED_LIMIT))
    assert [f.path for f in select(files).carried] == ["tokenizer.json"]


def test_a_subfolder_becomes_the_top_level():
    """With a subfolder its own small files travel, and licences of the top level."""
    chosen = pick(["LICENSE", "config.json", "tokenizer.json", *DIFFUSERS], subfolder="text_encoder")
    assert [f.path for f in chosen.carried] == ["LICENSE", "text_encoder/config.json"]
    assert carried_name("text_encoder/config.json", "text_encoder") == "config.json"
    assert carried_name("text_encoder/config.json", "text_encoder/") == "config.json"
    assert carried_name("LICENSE", "text_encoder") == "LICENSE"
    assert carried_name("a/b.json", None) == "a/b.json"


def test_original_without_a_model_beside_it_is_a_folder_like_others():
    """Where the top level holds no weights, `original/` is no copy and can be asked for."""
    paths = ["config.json", "original/model.safetensors", "original/config.json"]
    assert names(pick(paths, subfolder="original")) == ["original/model.safetensors"]


@pytest.mark.parametrize("count", ["99999999999999", "9" * 5000, "٠٠٠٠٢"])
def test_absurd_numbers_in_names_cost_nothing(count):
    """A set that claims billions of files is merely incomplete."""
    begun = process_time()
    with pytest.raises(CheckpointError, match="several models"):
        pick([f"a-00001-of-{count}.safetensors", f"a-00002-of-{count}.safetensors"])
    assert process_time() - begun < 1


def test_hostile_names_are_quoted_printable():
    """An error that lists files shows their names without control characters, and not all of a thousand."""
    with pytest.raises(CheckpointError) as caught:
        pick([f"{i}\x1b[31m\n.safetensors" for i in range(1000)])
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000
    assert "988 more" in caught.value.message
