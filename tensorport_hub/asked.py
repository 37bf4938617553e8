"""What a caller of a verb asked for, checked: options of the content, and how the result is published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorport_hub.core.encode.safetensors import SAFETENSORS
from tensorport_hub.core.encode.table import DEFAULT, ENCODINGS
from tensorport_hub.core.layout import LARGEST_SHARD
from tensorport_hub.core.plan import CHOICES, Options
from tensorport_hub.core.size import parse_size
from tensorport_hub.core.spelling import meant
from tensorport_hub.destination import Publication
from tensorport_hub.errors import UseError, gather

READS = ("http", "xet")


def options(given: Mapping[str, Any]) -> Options:
    """The content options among a verb's arguments, checked."""
    size = parse_size(given.get("shard_size", Options.shard_size))
    if size >= LARGEST_SHARD and not given.get("allow_large_shards"):
        raise UseError(
            f"shard size {size} is too large: expected less than {LARGEST_SHARD} bytes",
            hint="`--allow-large-shards` lifts this; git-LFS hosts often refuse 2 GB and more",
        )
    if size < 1:
        raise UseError("shard size must be positive")
    chosen = Options(
        subfolder=given["subfolder"],
        allow_patterns=_globs(given["allow_patterns"]),
        precision=given.get("precision", "keep"),
        quantized=given.get("quantized", "decode"),
        on_overflow=given.get("on_overflow", "error"),
        on_underflow=given.get("on_underflow", "report"),
        shard_size=size,
        include=_globs(given["include"]),
        exclude=_globs(given["exclude"]),
        verify_source=given.get("verify_source", "auto"),
        formats=_formats(given.get("format") or DEFAULT),
        experts=given.get("experts", "source"),
    )
    wrong = [
        _no_word(getattr(chosen, key), key.replace("_", "-"), words)
        for key, words in CHOICES.items()
        if getattr(chosen, key) not in words
    ]
    if wrong:
        raise wrong[0] if len(wrong) == 1 else gather(UseError, [error.message for error in wrong])
    if chosen.experts == "stacked":
        _refuse_stacked(chosen)
    return chosen


def _refuse_stacked(options: Options) -> None:
    """Refuse options that stacked experts rule out: they are decoded, and have no names in transformers."""
    if SAFETENSORS.name in options.formats:
        raise UseError(
            "`--experts stacked` and `--format safetensors` exclude each other: that format has transformers'"
            " own names and shapes",
            hint="make two mirrors",
        )
    if options.quantized == "keep":
        raise UseError("`--experts stacked` and `--quantized keep` exclude each other")


def _formats(given: str | Sequence[str]) -> tuple[str, ...]:
    """In the order of the table, whatever order they were given in."""
    words = _globs(given)
    for word in words:
        if word not in ENCODINGS:
            raise _no_word(word, "format", ENCODINGS)
    return tuple(word for word in ENCODINGS if word in words)


def publication(given: Mapping[str, Any], chosen: Options) -> Publication:
    """How the result is published, of a verb's arguments."""
    max_disk = given["max_disk"]
    return Publication(
        given["private"],
        given["i_have_rights"],
        given["transfer"],
        given.get("commit_message"),
        given["create_pr"],
        given["branch"],
        given.get("restart", False),
        parse_size(given["checkpoint_every"]),
        (1 + len(chosen.formats)) * chosen.shard_size if max_disk is None else parse_size(max_disk),
        given["author"],
    )


def by_xet(read: str) -> bool:
    """Whether the source is to be read by Xet."""
    if read not in READS:
        raise _no_word(read, "way to read", READS)
    return read == "xet"


def _no_word(word: str, what: str, words: Iterable[str]) -> UseError:
    expected = ", ".join(f"`{known}`" for known in words)
    return UseError(f"`{word}` is no {what}: expected one of {expected}", hint=meant(word, words))


def _globs(given: Sequence[str] | str) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
