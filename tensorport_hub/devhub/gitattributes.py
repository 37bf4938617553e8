"""Which files are LFS files: the rules of `.gitattributes`, and the Hub's own.

A file is stored as LFS when a rule of the repository's `.gitattributes` gives its path `filter=lfs`
(the last matching rule decides), when it is larger than 10 MB, or when its first bytes are not text.
Empty files are always regular. Patterns follow gitignore: without a slash they match the file's
name, with one they match the whole path, `**/` matches any depth.

Source: gitattributes(5); the default file is the one that the Hub puts into a new repository.
"""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from functools import lru_cache

REGULAR_LIMIT = 10_000_000
SAMPLE_NBYTES = 512  # how much of a file clients show

_PATTERNS = (
    "*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz"
    " *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar"
    " *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*"
)
LFS = "filter=lfs diff=lfs merge=lfs -text"
DEFAULT = "".join(f"{pattern} {LFS}\n" for pattern in _PATTERNS.split())


@lru_cache(maxsize=4096)
def _regex(pattern: str) -> re.Pattern[str]:
    anchored = "/" in pattern.rstrip("/")
    out = "" if anchored else "(?:.*/)?"
    rest = pattern.lstrip("/")
    while rest:
        if rest.startswith("**/"):
            out, rest = out + "(?:.*/)?", rest[3:]
        elif rest.startswith("**"):
            out, rest = out + ".*", rest[2:]
        elif rest.startswith("[") and "]" in rest:
            end = rest.index("]")
            out, rest = out + "[" + rest[1:end].replace("!", "^", 1) + "]", rest[end + 1 :]
        elif rest.startswith("\\") and len(rest) > 1:
            out, rest = out + re.escape(rest[1]), rest[2:]
        else:
            wild = {"*": "[^/]*", "?": "[^/]"}
            out, rest = out + wild.get(rest[0], re.escape(rest[0])), rest[1:]
    return re.compile(out)


def matches(pattern: str, path: str) -> bool:
    """Whether a gitignore-like pattern names this path."""
    return _regex(pattern).fullmatch(path) is not None


class Rules:
    """The LFS rules of one `.gitattributes`."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[re.Pattern[str], bool]] = []
        for line in text.splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            regex = _regex(words[0].replace("[[:space:]]", " "))
            for word in words[1:]:
                if word in ("-filter", "!filter") or word.startswith("filter="):
                    self._rules.append((regex, word == "filter=lfs"))

    def lfs(self, path: str) -> bool:
        """Whether the rules send this path to LFS."""
        for regex, to_lfs in reversed(self._rules):
            if regex.fullmatch(path):
                return to_lfs
        return False

    def mode(self, path: str, size: int, sample: bytes) -> str:
        """`lfs` or `regular`, for a file of this size that starts with `sample`."""
        if size == 0:
            return "regular"
        return "lfs" if self.lfs(path) or size > REGULAR_LIMIT or is_binary(sample) else "regular"


def is_binary(sample: bytes) -> bool:
    """Not text: a NUL byte, or no UTF-8 (a full sample may end inside a character)."""
    if b"\0" in sample:
        return True
    decoder = getincrementaldecoder("utf-8")()
    try:
        decoder.decode(sample, final=len(sample) < SAMPLE_NBYTES)
    except UnicodeDecodeError:
        return True
    return False


def with_rule(text: str, path: str) -> str:
    """`text` with a rule of its own for an LFS file that no rule covers."""
    if text and not text.endswith("\n"):
        text += "\n"
    quoted = re.sub(r"([*?\[\]\\])", r"\\\1", path).replace(" ", "[[:space:]]")
    return f"{text}{quoted} {LFS}\n"


def ignored(gitignore: str, path: str) -> bool:
    """Whether a `.gitignore` leaves this path out of a commit."""
    hidden = False
    for line in gitignore.splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        shown = line.startswith("!")
        pattern = line.lstrip("!")
        inside = pattern.rstrip("/") + "/**"
        if (
            (not pattern.endswith("/") and matches(pattern, path))
            or matches(inside, path)
            or ("/" not in pattern.rstrip("/") and matches("**/" + inside, path))
        ):
            hidden = not shown
    return hidden
