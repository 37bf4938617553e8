"""Modules and tensors as rectangles: names are split at dots, siblings lie together, small ones become one.

What would be too small to see is not drawn: a module, or several siblings, then are one cell that says how
many tensors it stands for. So the number of cells is bounded, whatever the checkpoint has of tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensorport_hub.report.treemap import Box, squarify

_DEPTH = 12
_THIN = 2.5


@dataclass(frozen=True)
class Tensor:
    """A tensor as the page shows it; `kind` is what it is coloured by."""

    name: str
    kind: str
    shape: tuple[int, ...]
    nbytes: int
    parameters: int
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A rectangle: one tensor, or `count` of them. `depth` is how many modules it lies in."""

    box: Box
    depth: int
    name: str
    kind: str
    count: int
    nbytes: int
    tensor: Tensor | None


@dataclass(frozen=True)
class Frame:
    """The edge of a module whose cells are drawn; `depth` is how many modules it lies in."""

    box: Box
    depth: int


@dataclass(slots=True)
class Module:
    """What lies under one name: `tensor` itself, and `children` below it; sums are those of both."""

    name: str
    tensor: Tensor | None = None
    children: dict[str, Module] = field(default_factory=dict)
    nbytes: int = 0
    count: int = 0
    kind: str = ""
    """What most of its bytes are."""

    def sum_up(self) -> Counter[str]:
        """Fill in the sums from below; bytes of each kind."""
        kinds = Counter[str]()
        if self.tensor is not None:
            kinds[self.tensor.kind] = self.tensor.nbytes
        for child in self.children.values():
            kinds += child.sum_up()
        self.count = (self.tensor is not None) + sum(child.count for child in self.children.values())
        self.nbytes = sum(kinds.values())
        self.kind = _largest(kinds)
        return kinds

    def parts(self) -> list[Module]:
        """What lies in it, the tensor of its own name included, the largest first, then by name."""
        found = list(self.children.values())
        if self.tensor is not None and found:
            found.append(Module(self.name, self.tensor, {}, self.tensor.nbytes, 1, self.tensor.kind))
        return sorted(found, key=lambda part: (-part.nbytes, natural(part.name)))


def natural(name: str) -> list[Any]:
    """What names are sorted by, so that `layers.10` comes after `layers.9`."""
    words: list[Any] = re.split("([0-9]+)", name)  # texts, and between each two of them a number
    for i in range(1, len(words), 2):
        digits = words[i].lstrip("0")
        words[i] = len(digits), digits  # not an int: a name may have more digits than int() takes
    return words


def _largest(kinds: Counter[str]) -> str:
    return min(kinds, key=lambda kind: (-kinds[kind], kind), default="")


def tree(tensors: Sequence[Tensor]) -> Module:
    """All tensors that have bytes, below the modules that their names tell."""
    root = Module("")
    for tensor in tensors:
        if tensor.nbytes:
            node, *words = root, *tensor.name.split(".", _DEPTH)
            for i, word in enumerate(words):
                if word not in node.children:
                    node.children[word] = Module(".".join(words[: i + 1]))
                node = node.children[word]
            node.tensor = tensor
    root.sum_up()
    return root


def cells(root: Module, box: Box, *, smallest: float) -> tuple[list[Cell], list[Frame]]:
    """The rectangles of a tree, none of them much below the area `smallest`, and the edges of modules."""
    drawn = list(_drawn(root, box, smallest, 0)) if root.nbytes else []
    return [one for one in drawn if isinstance(one, Cell)], [one for one in drawn if isinstance(one, Frame)]


def _drawn(node: Module, box: Box, smallest: float, depth: int) -> Iterator[Cell | Frame]:
    while len(node.children) == 1 and node.tensor is None:
        (node,) = node.children.values()
    parts = node.parts()
    if not parts or box.area < 2 * smallest or min(box.width, box.height) < _THIN:
        yield Cell(box, depth, node.name, node.kind, node.count, node.nbytes, None if parts else node.tensor)
        return
    yield Frame(box, depth)
    scale = box.area / node.nbytes
    shown = [part for part in parts if part.nbytes * scale >= smallest]
    small = parts[len(shown) :]
    if small:
        shown.append(small[0] if len(small) == 1 else _together(node.name, small))
        shown.sort(key=lambda part: -part.nbytes)
    for part, place in zip(shown, squarify([part.nbytes for part in shown], box), strict=True):
        yield from _drawn(part, place, smallest, depth + 1)


def _together(name: str, parts: Sequence[Module]) -> Module:
    """Several siblings as one that is not looked into."""
    kinds = Counter[str]()
    for part in parts:
        kinds[part.kind] += part.nbytes
    nbytes, count = sum(part.nbytes for part in parts), sum(part.count for part in parts)
    return Module(name, None, {}, nbytes, count, _largest(kinds))
