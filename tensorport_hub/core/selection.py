"""Which files of a repository are the model, and which small ones travel with it.

The model, in the folder that was asked for (the top level unless `subfolder` says otherwise):

1. `model.safetensors.index.json`, else the only other `*.safetensors.index.json`;
2. `model.safetensors`, else the only other `*.safetensors`, else one complete set of
   `NAME-00001-of-000NN.safetensors` without an index.

Variants (`model.fp16...`), `consolidated*` and `adapter*` files are considered only where nothing else is
there or a pattern names them. What is left ambiguous is an error that lists the candidates. With patterns,
the rules apply to the matching files; several matching files without an index are the model together.

`original/` and `metal/` beside a model at the top level (gpt-oss) are copies of it in other layouts: they are
never read, not even where a pattern matches.

Carried over byte for byte: configuration, tokenizer, chat template, preprocessor, licence files of that
folder (licences of the top level too). Never: other weights, pickles, code, other folders. So what a name may
begin with in any way (`tokenizer*`) must end as a text or a SentencePiece model does, and where the name says
nothing of the kind (`*.model`, no ending) the first bytes must not be those of a program, a pickle or an
archive: gensim's `*.model` is a pickle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import CheckpointError, UseError

INDEX = ".safetensors.index.json"
WEIGHTS = ".safetensors"
CARRIED_LIMIT = 64 * 1024 * 1024

_MOST_LISTED = 12
_SECOND_CHOICE = re.compile(
    r"(consolidated|adapter|.*\.(fp16|bf16|fp32|8bit|4bit|non_ema|ema)[.-])", re.IGNORECASE
)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\:]|(^|/)\.{0,2}(/|$)")
_NUMBERED = re.compile(r"(.+)-(\d{5,12})-of-(\d{5,12})\.safetensors", re.ASCII)
_COPIES = ("original/", "metal/")
_CARRIED = (
    *("config.json", "*_config.json", "config_*.json", "modules.json"),
    *("merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model", "*.tiktoken", "*.jinja"),
    *("additional_chat_templates/*.jinja", "1_*/config.json", "2_*/config.json", "3_*/config.json"),
)
_BEGUN = re.compile(
    r"(tokenizer|vocab|chat_template)"
    r"([^/.]*|[^/]*\.(jsonl?|txt|ya?ml|jinja2?|tiktoken|vocab|bpe|spm|model(\.v\w+)?))"
)
"""What begins so, and how it may end; `tokenizer.model.v3` is Mistral's."""
_READABLE = re.compile(r".*\.(jsonl?|txt|md|ya?ml|jinja2?|tiktoken|vocab|bpe)", re.IGNORECASE | re.DOTALL)
_FOREIGN = re.compile(
    rb"\x80[\x02-\x05]|PK\x03\x04|\x1f\x8b|\xfd7zXZ|BZh\d1AY&|\x93NUMPY|\x89HDF|GGUF"
    rb"|\x7fELF|MZ[^\n]\x00|[\xce\xcf]\xfa\xed\xfe"
)
"""Pickles, archives, programs, arrays: what none of the carried files begins with."""
LOOKED_AT = 8
"""Bytes that tell them."""
_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*", "USAGE_POLICY*", "THIRD_PARTY*")
QUANTIZATION_CONFIGS = frozenset(
    ["hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"]
)
_NEVER = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".pkl",
    ".pickle",
    ".py",
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
)


@dataclass(frozen=True)
class Selection:
    """The model's files: an index to read first, or the weight files themselves; and what is carried."""

    index: SourceFile | None
    weights: tuple[SourceFile, ...]
    carried: tuple[SourceFile, ...]
    passed_over: tuple[str, ...]


def select(
    files: Iterable[SourceFile], *, subfolder: str | None = None, allow_patterns: Sequence[str] = ()
) -> Selection:
    """Apply the rules above.

    Raises:
        UseError: `subfolder` or `allow_patterns` name nothing.
        CheckpointError: there is no safetensors model, or several and no rule prefers one.
    """
    every = sorted(files, key=lambda f: f.path)
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    copied = any(f.path.endswith((WEIGHTS, INDEX)) and "/" not in f.path for f in every)
    listed = [f for f in every if not (copied and f.path.startswith(_COPIES))]
    if copied and prefix.startswith(_COPIES):
        raise UseError(
            f"subfolder `{subfolder}` is never read: it holds another layout of the model",
            hint="the model itself lies at the top level",
        )
    here = [f for f in listed if f.path.startswith(prefix)]
    if prefix and not here:
        raise UseError(f"subfolder `{subfolder}` is not in the source", hint=_folders(listed))
    if allow_patterns:
        chosen = [f for f in here if any(fnmatchcase(f.path.removeprefix(prefix), p) for p in allow_patterns)]
        if not any(f.path.endswith((WEIGHTS, INDEX)) for f in chosen):
            raise UseError(f"no safetensors file matches {_list(allow_patterns)}", hint=_folders(listed))
    else:
        chosen = [f for f in here if "/" not in f.path.removeprefix(prefix)]
    index, weights = _model(chosen, patterns=bool(allow_patterns), every=listed)
    taken = {f.path for f in weights} | ({index.path} if index else set())
    for path in sorted(taken):
        if not path.isprintable():
            raise CheckpointError(
                f"`{shorten(path)}` is no name of a weight file: expected printable characters"
            )
    rest = [f.path for f in chosen if f.path.endswith((WEIGHTS, INDEX)) and f.path not in taken]
    passed_over = () if index else tuple(rest)
    carried = tuple(_apart([f for f in listed if _travels(f, prefix)], subfolder))
    return Selection(index, tuple(weights), carried, passed_over)


def _model(
    files: list[SourceFile], *, patterns: bool, every: list[SourceFile]
) -> tuple[SourceFile | None, list[SourceFile]]:
    files = [f for f in files if f.path.endswith((INDEX, WEIGHTS))]
    if not patterns:
        files = [f for f in files if not _is_second_choice(f)] or files
    indexes = _preferred([f for f in files if f.path.endswith(INDEX)])
    if len(indexes) == 1:
        return indexes[0], []
    singles = [f for f in files if f.path.endswith(WEIGHTS)]
    if not patterns:
        singles = _preferred(singles)
    if indexes:
        raise _ambiguous(indexes)
    if not singles:
        raise CheckpointError("the source holds no safetensors model here", hint=_folders(every))
    if len(singles) == 1 or patterns or _complete(singles):
        return None, singles
    raise _ambiguous(singles)


def _preferred(files: list[SourceFile]) -> list[SourceFile]:
    named = [f for f in files if f.path.rpartition("/")[2] in ("model" + INDEX, "model" + WEIGHTS)]
    return named or [f for f in files if not _is_second_choice(f)] or files


def _is_second_choice(file: SourceFile) -> bool:
    return _SECOND_CHOICE.match(file.path.rpartition("/")[2]) is not None


def _complete(files: list[SourceFile]) -> bool:
    matches = [_NUMBERED.fullmatch(f.path) for f in files]
    found = [(m.group(1), int(m.group(2)), int(m.group(3))) for m in matches if m]
    stems = {(stem, of) for stem, _, of in found}
    return (
        len(found) == len(files)
        and len(stems) == 1
        and len(found) == found[0][2]
        and {n for _, n, _ in found} == set(range(1, len(found) + 1))
    )


def _ambiguous(files: list[SourceFile]) -> CheckpointError:
    return CheckpointError(
        f"several models could be meant: {_list([f.path for f in files])}",
        hint="choose with `--allow-patterns` or `--subfolder`",
    )


def _apart(carried: Sequence[SourceFile], subfolder: str | None) -> Iterator[SourceFile]:
    """Of files whose names differ in case alone the first: not every place can hold both."""
    seen: set[str] = set()
    for file in carried:
        name = carried_name(file.path, subfolder).lower()
        if name not in seen:
            yield file
        seen.add(name)


def _travels(file: SourceFile, prefix: str) -> bool:
    name = file.path.removeprefix(prefix) if file.path.startswith(prefix) else None
    if file.size > CARRIED_LIMIT or file.path.lower().endswith(_NEVER):
        return False
    if _UNSAFE.search(file.path) or not file.path.isprintable():
        return False
    if "/" not in file.path and is_licence(file.path):
        return True
    if name is None or name.endswith(INDEX):
        return False
    depth = name.count("/")
    return _BEGUN.fullmatch(name) is not None or any(
        fnmatchcase(name, pattern) and pattern.count("/") == depth for pattern in (*_CARRIED, *_LICENCES)
    )


def is_doubtful(path: str) -> bool:
    """Whether the name of a carried file leaves open that it is a pickle or a program."""
    return not _READABLE.fullmatch(path) and not (is_licence(path) and "." not in path)


def is_foreign(begins: bytes) -> bool:
    """Whether a file that begins so may not travel, whatever it is called."""
    return _FOREIGN.match(begins) is not None


def is_licence(path: str) -> bool:
    """Whether a file at the top of a mirror says what may be done with it."""
    return any(fnmatchcase(path, pattern) for pattern in _LICENCES)


def carried_name(path: str, subfolder: str | None) -> str:
    """Where a carried file lies in the mirror: the model's folder becomes the top level."""
    return path.removeprefix(f"{subfolder.strip('/')}/") if subfolder else path


def _folders(files: list[SourceFile]) -> str:
    places = {f.path.rpartition("/")[0] for f in files if f.path.endswith((WEIGHTS, INDEX))}
    if not places:
        return "there is no safetensors file in the whole source"
    folders = sorted(places - {""})
    said = ["at the top level"] * ("" in places) + [f"in {_list(folders)}"] * bool(folders)
    return f"safetensors files lie {' and '.join(said)}" + ("; see `--subfolder`" if folders else "")


def _list(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _MOST_LISTED} more" if len(shown) > _MOST_LISTED else ""
    return ", ".join(f"`{shorten(name)}`" for name in shown[:_MOST_LISTED]) + more
