"""Repositories in Xet storage, as a user makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import _xet as client_xet

from tensorport_hub.devhub import DevHub


def push(hub: DevHub, repo_id: str, content: Mapping[str, bytes] | Path) -> None:
    """Commit files, or those of a folder, with the unmodified client, by Xet.

    The client keeps one Xet session a process, which believes that every Hub has what one of them has: it
    gets a new one.
    """
    client_xet._GLOBAL_XET_HOLDER = client_xet.XetSessionHolder()
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(repo_id, exist_ok=True)
    if isinstance(content, Path):
        api.upload_folder(repo_id=repo_id, folder_path=content)
        return
    additions = [CommitOperationAdd(path, data) for path, data in content.items()]
    api.create_commit(repo_id, additions, commit_message="seed")
