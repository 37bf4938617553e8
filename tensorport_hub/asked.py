"""What a caller of a verb asked for, checked: options of the content, and how the result is published."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorport_hub.core.branch import branch_name
from tensorport_hub.core.encode.safetensors import SAFETENSORS
from tensorport_hub.core.encode.table import DEFAULT, ENCODINGS
from tensorport_hub.core.layout import LARGEST_SHARD
from tensorport_hub.core.plan import CHOICES, Options
from tensorport_hub.core.size import parse_size
from tensorport_hub.core.spelling import meant
from tensorport_hub.destination import Publication
from tensorport_hub.edge.page import Page
from tensorport_hub.errors import UseError, gather

READS = ("http", "xet")


def place(given: str | os.PathLike[str], what: str) -> str:
    """A source, a destination or a file, as text; a path is a folder, whatever its name looks like."""
    text = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(text, str):
        raise UseError(f"`{what}` must be a text or a path, got {given!r}")
    if text is given or text.startswith("~"):
        return text
    return os.path.join(os.curdir, text)  # which pathlib leaves out


def perhaps_place(given: str | os.PathLike[str] | None, what: str) -> str | None:
    """The same, where it may be left out."""
    return None if given is None else place(given, what)


def page(report: str | os.PathLike[str] | None) -> Page | None:
    """Where a page about the result is to be written."""
    path = perhaps_place(report, "report")
    return None if path is None else Page(path)


def check_texts(given: Mapping[str, Any], *names: str) -> None:
    """Refuse arguments that are neither texts nor None, where a verb has them, and an empty revision."""
    for name in names:
        value = given.get(name)
        if value is not None and not isinstance(value, str):
            raise UseError(f"`{name.replace('_', '-')}` must be a text, got {value!r}")
    if given.get("revision") == "":
        raise UseError(
            "revision is empty: expected a branch, a tag or a commit", hint="leave it out for `main`"
        )


def options(given: Mapping[str, Any]) -> Options:
    """The content options among a verb's arguments, checked."""
    check_texts(given, "revision", "subfolder", "token")
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
        allow_patterns=_globs(given, "allow_patterns"),
        precision=given.get("precision", "keep"),
        quantized=given.get("quantized", "decode"),
        on_overflow=given.get("on_overflow", "error"),
        on_underflow=given.get("on_underflow", "report"),
        shard_size=size,
        include=_globs(given, "include"),
        exclude=_globs(given, "exclude"),
        verify_source=given.get("verify_source", "auto"),
        formats=_formats(_globs(given, "format") or (DEFAULT,)),
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


def _formats(given: Sequence[str]) -> tuple[str, ...]:
    """In the order of the table, whatever order they were given in."""
    for word in given:
        if word not in ENCODINGS:
            raise _no_word(word, "format", ENCODINGS)
    return tuple(word for word in ENCODINGS if word in given)


def publication(given: Mapping[str, Any], chosen: Options) -> Publication:
    """How the result is published, of a verb's arguments."""
    check_texts(given, "branch", "author", "commit_message")
    max_disk, branch = given["max_disk"], given["branch"]
    return Publication(
        private=given["private"],
        i_have_rights=given["i_have_rights"],
        transfer=given["transfer"],
        message=given.get("commit_message"),
        create_pr=given["create_pr"],
        branch=None if branch is None else branch_name(branch),
        restart=given.get("restart", False),
        checkpoint_every=parse_size(given["checkpoint_every"]),
        max_disk=(1 + len(chosen.formats)) * chosen.shard_size if max_disk is None else parse_size(max_disk),
        author=given["author"],
    )


def by_xet(read: str) -> bool:
    """Whether the source is to be read by Xet."""
    if read not in READS:
        raise _no_word(read, "way to read", READS)
    return read == "xet"


def _no_word(word: str, what: str, words: Iterable[str]) -> UseError:
    expected = ", ".join(f"`{known}`" for known in words)
    return UseError(f"`{word}` is no {what}: expected one of {expected}", hint=meant(str(word), words))


def _globs(given: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """One text, or several, or None."""
    value = given.get(name)
    several = (value,) if isinstance(value, str) else () if value is None else value
    texts = tuple(several) if isinstance(several, Iterable) else (several,)
    if not all(isinstance(text, str) for text in texts):
        raise UseError(f"`{name.replace('_', '-')}` must be texts, got {value!r}")
    return texts
