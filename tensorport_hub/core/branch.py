"""What may be the name of a branch.

The rules are git's own (`git check-ref-format --branch`), so that a name is refused before anything is sent
and not by the server that is sent it last. CI systems hand on the whole ref (`${{ github.ref }}`): of
`refs/heads/main` the branch is `main`, and what else lies below `refs/` is none.
"""

from __future__ import annotations

import re

from tensorport_hub.core.tensor import shorten
from tensorport_hub.errors import UseError

_HEADS = "refs/heads/"
_WRONG = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.lock(/|$)|^[-/]|[/.]$|^(@|HEAD)?$|^refs(/|$)"
    r"|[\ud800-\udfff]"
)


def branch_name(text: str) -> str:
    """The branch that `text` names.

    Raises:
        UseError: git would have none of that name.
    """
    name = text.removeprefix(_HEADS)
    if _WRONG.search(name):
        raise UseError(
            f"`{shorten(text)}` is no branch: expected a name as git takes it, like `main` or `npy/v1`",
            hint="tags and pull requests are no branches" if name.startswith("refs/") else "",
        )
    return name
