"""A survey of a source: which files are the model, what their headers say, and the small texts beside them.

One range a file reads its header (two, where it is long). The index, if there is one, decides which file a
tensor comes from; what it names and the file lacks is an error, what it leaves out is skipped with a warning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from threading import Lock
from typing import Any

from tensorport_hub.core.card import FRONT_NBYTES, read_front_matter
from tensorport_hub.core.detect import CONFIG_FILES, Checkpoint, is_fact, logical_name
from tensorport_hub.core.digest import SourceFile
from tensorport_hub.core.ranges import coalesce
from tensorport_hub.core.safetensors import (
    FIRST_READ,
    Header,
    header_stop,
    parse_header,
    parse_index,
)
from tensorport_hub.core.selection import (
    LOOKED_AT,
    Selection,
    carried_name,
    is_doubtful,
    is_foreign,
    select,
)
from tensorport_hub.core.tensor import TensorSpec, shorten
from tensorport_hub.errors import CheckpointError, UseError, gather
from tensorport_hub.ports import Report, Source, Warned
from tensorport_hub.texts import read_beginning, read_small

_READERS = 8
_FACT_GAP = 256 * 1024
_FACT_RANGE = 16 * 1024 * 1024
_FACTS_LIMIT = 256 * 1024 * 1024
_INDEX_LIMIT = 32 << 20
_CONFIGS_LIMIT = 4 << 20
"""Bytes of all configuration files that are parsed: real ones have some kB, those with the names of 20,000
classes 2 MB; and of `[[],[],...]` Python makes thirty times as many."""
_LONG = 1 << 20
"""Bytes of a header above which it is read and parsed alone: that takes several times as many."""


@dataclass(frozen=True)
class Carried:
    """A small file that travels with the weights, under its name in the mirror."""

    path: str
    file: SourceFile


@dataclass(frozen=True)
class Survey:
    """What there is to mirror.

    Attributes:
        revision: the commit, or a digest of all headers where the source has none.
        files: weight files, by name.
        checkpoint: wanted tensors, files by name, then by offset; their facts; configuration files.
        skipped: unwanted tensors, with the reason.
        partial: files that hold some of those.
        config: the model's `config.json`, parsed; empty where there is none.
        config_text: the same as text.
        card: front matter of the source's model card.
    """

    repo: str | None
    revision: str
    files: tuple[SourceFile, ...]
    checkpoint: Checkpoint
    skipped: Mapping[str, str]
    partial: tuple[str, ...]
    carried: tuple[Carried, ...]
    config: Mapping[str, Any]
    config_text: str | None
    card: Mapping[str, Any]

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The wanted tensors."""
        return tuple(self.checkpoint.tensors.values())


def survey(
    source: Source,
    *,
    subfolder: str | None,
    allow_patterns: Sequence[str],
    include: Sequence[str],
    exclude: Sequence[str],
    report: Report,
) -> Survey:
    """Look at everything but the weights.

    Raises:
        CheckpointError: no model, a malformed header or index, or names that contradict each other.
        SourceError: the source can't be read.
        UseError: a selection or filter that matches nothing.
    """
    chosen = select(source.files, subfolder=subfolder, allow_patterns=allow_patterns)
    weight_map = _weight_map(source, chosen)
    files = _weight_files(source, chosen, weight_map)
    headers = _headers(source, files)
    skipped: dict[str, str] = {}
    tensors = _tensors(headers, weight_map, chosen, skipped)
    for name in skipped:
        report(Warned(f"tensor `{shorten(name)}` is left out: {skipped[name]}"))
    for path in chosen.passed_over:
        report(Warned(f"`{shorten(path)}` is left out: another file is the model; see `--allow-patterns`"))
    wanted = _filtered(tensors, include, exclude, skipped)
    by_path = {f.path: f for f in source.files}
    for carried in chosen.carried:  # no byte is wanted yet, but a folder says now what it won't give later
        source.read_into(carried.path, 0, memoryview(bytearray()))
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    readme = by_path.get(f"{prefix}README.md") or by_path.get("README.md")
    texts = _config_texts(source, {n: by_path[prefix + n] for n in CONFIG_FILES if prefix + n in by_path})
    configs = {name: _config(text, prefix + name) for name, text in texts.items()}
    checkpoint = Checkpoint(
        {tensor.name: tensor for tensor in wanted},
        _facts(source, wanted),
        configs,
        {key: value for header in headers for key, value in header.metadata.items()},
    )
    return Survey(
        source.repo,
        source.commit or _digest(headers, files),
        tuple(files),
        checkpoint,
        skipped,
        tuple(sorted({header.file for header in headers if any(t.name in skipped for t in header.tensors)})),
        tuple(Carried(carried_name(f.path, subfolder), f) for f in _carried(source, chosen, report)),
        configs.get("config.json", {}),
        texts.get("config.json"),
        read_front_matter(read_beginning(source, readme, FRONT_NBYTES).decode("utf-8", "replace"))
        if readme
        else {},
    )


def _config_texts(source: Source, files: Mapping[str, SourceFile]) -> dict[str, str]:
    """The configuration files, which are only held where all of them together are small."""
    total = sum(file.size for file in files.values())
    if total > _CONFIGS_LIMIT:
        named = ", ".join(f"`{file.path}`" for file in files.values())
        raise CheckpointError(
            f"{named} {'is' if len(files) == 1 else 'are'} absurdly large for configuration: expected at most"
            f" {_CONFIGS_LIMIT} bytes, got {total}"
        )
    return {name: read_small(source, file).decode("utf-8", "replace") for name, file in files.items()}


def _carried(source: Source, chosen: Selection, report: Report) -> Iterator[SourceFile]:
    """What travels: no file that turns out to be a pickle or a program."""
    for file in chosen.carried:
        begins = bytearray(min(LOOKED_AT, file.size) if is_doubtful(file.path) else 0)
        if begins:
            source.read_into(file.path, 0, memoryview(begins))
        if is_foreign(bytes(begins)):
            report(Warned(f"`{file.path}` is left out: it begins like a pickle, an archive or a program"))
        else:
            yield file


def _weight_map(source: Source, chosen: Selection) -> dict[str, str] | None:
    """Tensor name -> path in the source, where there is an index."""
    if chosen.index is None:
        return None
    folder = chosen.index.path.rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    parsed = parse_index(read_small(source, chosen.index, limit=_INDEX_LIMIT), file=chosen.index.path)
    return {tensor: prefix + file for tensor, file in parsed.items()}


def _weight_files(
    source: Source, chosen: Selection, weight_map: Mapping[str, str] | None
) -> list[SourceFile]:
    if weight_map is None or chosen.index is None:
        return sorted(chosen.weights, key=lambda f: f.path)
    by_path = {f.path: f for f in source.files}
    named = sorted(set(weight_map.values()))
    missing = [
        f"index `{chosen.index.path}` names `{path}`, which is not there"
        for path in named
        if path not in by_path
    ]
    if missing:
        raise gather(CheckpointError, missing, hint="the source is incomplete")
    return [by_path[path] for path in named]


def _headers(source: Source, files: Sequence[SourceFile]) -> list[Header]:
    readers = ThreadPoolExecutor(min(_READERS, max(1, len(files))), thread_name_prefix="header")
    alone = Lock()
    try:
        return list(readers.map(lambda file: read_header(source, file, alone), files))
    finally:
        readers.shutdown(wait=False, cancel_futures=True)  # an interrupt waits for no silent server


def read_header(
    source: Source, file: SourceFile, alone: AbstractContextManager[object] | None = None
) -> Header:
    """A file's header, by one range; by a second one where it is longer than the first.

    Args:
        alone: entered while it is held where it is so long that only one may be.
    """
    first = bytearray(min(FIRST_READ, file.size))
    if first:
        source.read_into(file.path, 0, memoryview(first))
    stop = header_stop(bytes(first[:8]), file=file.path, file_size=file.size)
    with alone if alone is not None and stop > _LONG else nullcontext():
        whole = first
        if stop > len(first):
            whole = bytearray(stop)
            whole[: len(first)] = first
            source.read_into(file.path, len(first), memoryview(whole)[len(first) :])
        return parse_header(whole, file=file.path, file_size=file.size)


def _tensors(
    headers: Sequence[Header],
    weight_map: Mapping[str, str] | None,
    chosen: Selection,
    skipped: dict[str, str],
) -> list[TensorSpec]:
    found: dict[str, TensorSpec] = {}
    problems: list[str] = []
    for header in headers:
        for tensor in header.tensors:
            if weight_map is not None and weight_map.get(tensor.name) != header.file:
                skipped.setdefault(tensor.name, f"the index does not place it in `{header.file}`")
            elif tensor.name in found:
                first = found[tensor.name].file
                problems.append(f"tensor `{shorten(tensor.name)}` stands in `{first}` and `{header.file}`")
            else:
                found[tensor.name] = tensor
    if weight_map is not None and chosen.index is not None:
        problems += [
            f"index `{chosen.index.path}` places `{shorten(name)}` in `{file}`, which does not hold it"
            for name, file in weight_map.items()
            if name not in found
        ]
    if problems:
        raise gather(CheckpointError, problems)
    for name in found:
        skipped.pop(name, None)
    return list(found.values())


def _filtered(
    tensors: Sequence[TensorSpec], include: Sequence[str], exclude: Sequence[str], skipped: dict[str, str]
) -> tuple[TensorSpec, ...]:
    wanted = []
    for tensor in tensors:
        names = (tensor.name, logical_name(tensor.name))
        if include and not any(fnmatchcase(name, pattern) for name in names for pattern in include):
            skipped[tensor.name] = "not included"
        elif any(fnmatchcase(name, pattern) for name in names for pattern in exclude):
            skipped[tensor.name] = "excluded"
        else:
            wanted.append(tensor)
    if not wanted:
        raise UseError("no tensor is left to mirror", hint="check `--include` and `--exclude`")
    return tuple(wanted)


def _facts(source: Source, tensors: Sequence[TensorSpec]) -> dict[str, bytes]:
    """The contents of all small tensors that detection needs, by few requests.

    Raises:
        CheckpointError: together they are more than may be held.
    """
    facts = [tensor for tensor in tensors if is_fact(tensor)]
    total = sum(tensor.nbytes for tensor in facts)
    if total > _FACTS_LIMIT:
        raise CheckpointError(
            f"{len(facts)} tensors that say how weights are stored have {total} bytes: expected at most"
            f" {_FACTS_LIMIT}"
        )
    by_file: dict[str, list[TensorSpec]] = {}
    for tensor in facts:
        by_file.setdefault(tensor.file, []).append(tensor)
    found: dict[str, bytes] = {}
    for file, wanted in by_file.items():
        for start, stop in coalesce([(t.start, t.stop) for t in wanted], gap=_FACT_GAP, longest=_FACT_RANGE):
            buffer = bytearray(stop - start)
            source.read_into(file, start, memoryview(buffer))
            found |= {
                t.name: bytes(buffer[t.start - start : t.stop - start])
                for t in wanted
                if start <= t.start and t.stop <= stop
            }
    return found


def _config(data: str, path: str) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"`{path}`: expected a JSON object, got {type(value).__name__}")
    return value


def _digest(headers: Sequence[Header], files: Sequence[SourceFile]) -> str:
    """A stand-in for the commit that a folder lacks: 40 hex digits over names, sizes and headers."""
    digest = hashlib.sha256()
    for header, file in zip(headers, files, strict=True):
        digest.update(f"{file.path}\0{file.size}\0{header.data_start}\0".encode())
        for t in header.tensors:
            digest.update(f"{t.name}\0{t.dtype}\0{t.shape}\0{t.start}\0".encode())
    return digest.hexdigest()[:40]
