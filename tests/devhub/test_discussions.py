"""Discussions and pull requests: opened, pushed to, closed, merged, and by whom."""

from __future__ import annotations

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from tensorport_hub.devhub import DevHub

from .conftest import Fetch


@pytest.fixture(autouse=True)
def _out(api: HfApi, lfs_only: None) -> None:
    api.create_repo("me/out")


def put(client: HfApi, path: str, data: bytes, revision: str | None = None, **options: bool) -> None:
    client.upload_file(
        path_or_fileobj=data, path_in_repo=path, repo_id="me/out", revision=revision, **options
    )


def refused(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_a_pull_request_from_draft_to_merge(hub: DevHub, api: HfApi) -> None:
    """POST discussions, commits to refs/pr/1, status, merge: one commit on main holds it all."""
    opened = api.create_pull_request("me/out", "Add files", description="Why: `because`")
    assert (opened.num, opened.status, opened.git_reference) == (1, "draft", "refs/pr/1")
    put(api, "a.txt", b"a", revision="refs/pr/1")
    put(api, "w.npy", b"\0w", revision="refs/pr/1")
    assert list(hub.files("me/out")) == [".gitattributes"]
    api.change_discussion_status("me/out", 1, "open")
    api.merge_pull_request("me/out", 1)
    merged = api.get_discussion_details("me/out", 1)
    assert (merged.status, merged.target_branch) == ("merged", "refs/heads/main")
    assert merged.merge_commit_oid == api.model_info("me/out").sha
    assert [commit.title for commit in hub.commits("me/out")] == ["Add files (#1)", "initial commit"]
    assert hub.read("me/out", "a.txt") == b"a"
    assert hub.read("me/out", "w.npy") == b"\0w"


def test_details_tell_author_description_and_events(hub: DevHub, api: HfApi) -> None:
    """GET discussions/n: the description is the first comment; commits and status changes follow."""
    api.create_pull_request("me/out", "Add files", description="fingerprint 123")
    put(api, "a.txt", b"a", revision="refs/pr/1")
    api.change_discussion_status("me/out", 1, "closed", comment="never mind")
    details = api.get_discussion_details("me/out", 1)
    first, commit, comment, closed = details.events
    assert details.author == "me"
    assert isinstance(first, DiscussionComment)
    assert first.content == "fingerprint 123"
    assert isinstance(commit, DiscussionCommit)
    assert commit.oid == hub.commits("me/out", "refs/pr/1")[0].oid
    assert isinstance(comment, DiscussionComment)
    assert isinstance(closed, DiscussionStatusChange)
    assert closed.new_status == "closed"
    assert details.conflicting_files == []
    assert details.diff is not None
    assert "a.txt" in details.diff


def test_a_commit_can_open_a_pull_request(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """?create_pr=1: an open pull request by whoever may read; main does not move."""
    info = stranger.create_commit(
        "me/out",
        [CommitOperationAdd("a.txt", b"a")],
        commit_message="Title",
        commit_description="Text",
        create_pr=True,
    )
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert info.pr_url == f"{hub.endpoint}/me/out/discussions/1"
    details = api.get_discussion_details("me/out", 1)
    assert (details.title, details.author, details.status) == ("Title", "stranger", "open")
    assert isinstance(details.events[0], DiscussionComment)
    assert details.events[0].content == "Text"
    assert hub.commits("me/out", "refs/pr/1")[0].author == "stranger"
    assert "a.txt" not in hub.files("me/out")


def test_a_pull_request_can_start_from_an_older_commit(hub: DevHub, api: HfApi) -> None:
    """`parent_commit` with `create_pr` says where it starts."""
    first = hub.commits("me/out")[0].oid
    put(api, "later.txt", b"x")
    api.create_commit(
        "me/out",
        [CommitOperationAdd("a.txt", b"a")],
        commit_message="m",
        create_pr=True,
        parent_commit=first,
    )
    assert set(hub.files("me/out", "refs/pr/1")) == {".gitattributes", "a.txt"}
    api.merge_pull_request("me/out", 1)
    assert set(hub.files("me/out")) == {".gitattributes", "a.txt", "later.txt"}


def test_only_author_and_writers_push_to_a_pull_request(hub: DevHub, api: HfApi, stranger: HfApi) -> None:
    """Another stranger is refused; the author and the owner are not."""
    stranger.create_pull_request("me/out", "Mine")
    other = HfApi(endpoint=hub.endpoint, token=hub.add_user("other"))
    put(stranger, "a.txt", b"a", revision="refs/pr/1")
    put(api, "b.txt", b"b", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError) as error:
        put(other, "c.txt", b"c", revision="refs/pr/1")
    assert refused(error) == 403
    assert set(hub.files("me/out", "refs/pr/1")) == {".gitattributes", "a.txt", "b.txt"}


def test_only_writers_merge(api: HfApi, stranger: HfApi) -> None:
    """The author of a pull request may close it, not merge it."""
    put(stranger, "a.txt", b"a", create_pr=True)
    with pytest.raises(HfHubHTTPError) as error:
        stranger.merge_pull_request("me/out", 1)
    assert refused(error) == 403
    stranger.change_discussion_status("me/out", 1, "closed")
    stranger.change_discussion_status("me/out", 1, "open")
    api.merge_pull_request("me/out", 1)


def test_what_cannot_be_merged(api: HfApi) -> None:
    """Drafts, closed and merged pull requests, and discussions: 400."""
    api.create_pull_request("me/out", "Draft")
    api.create_discussion("me/out", "Talk")
    put(api, "a.txt", b"a", create_pr=True)
    api.merge_pull_request("me/out", 3)
    for num in (1, 2, 3):
        with pytest.raises(BadRequestError):
            api.merge_pull_request("me/out", num)
    with pytest.raises(HfHubHTTPError):
        put(api, "b.txt", b"b", revision="refs/pr/3")


def test_a_conflict_is_told_and_refused(hub: DevHub, api: HfApi) -> None:
    """A file that both sides changed: named in `conflicting_files`, 409 on merge."""
    put(api, "a.txt", b"pr", create_pr=True)
    put(api, "a.txt", b"main")
    put(api, "same.txt", b"same", revision="refs/pr/1")
    put(api, "same.txt", b"same")
    assert api.get_discussion_details("me/out", 1).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as error:
        api.merge_pull_request("me/out", 1)
    assert refused(error) == 409
    put(api, "a.txt", b"main", revision="refs/pr/1")
    api.merge_pull_request("me/out", 1)
    assert hub.read("me/out", "a.txt") == b"main"


def test_a_merge_carries_deletions(hub: DevHub, api: HfApi) -> None:
    """What the pull request deleted is gone; what main added meanwhile stays."""
    hub.add_repo("me/out", {".tensorport/journal": b"x", "keep.txt": b"k"})
    api.create_commit("me/out", [CommitOperationDelete(".tensorport/")], commit_message="m", create_pr=True)
    put(api, "new.txt", b"n")
    api.merge_pull_request("me/out", 1)
    assert set(hub.files("me/out")) == {".gitattributes", "keep.txt", "new.txt"}


def test_discussions_are_listed_and_filtered(api: HfApi, stranger: HfApi) -> None:
    """GET discussions: newest first, by type, status and author; drafts are open."""
    api.create_pull_request("me/out", "One")
    api.create_discussion("me/out", "Two")
    stranger.create_pull_request("me/out", "Three")
    api.change_discussion_status("me/out", 2, "closed")

    def nums(**wanted: str) -> list[int]:
        return [row.num for row in api.get_repo_discussions("me/out", **wanted)]

    assert nums() == [3, 2, 1]
    assert nums(discussion_type="pull_request") == [3, 1]
    assert nums(discussion_status="closed") == [2]
    assert nums(discussion_status="open", author="stranger") == [3]
    assert [row.author for row in api.get_repo_discussions("me/out")] == ["stranger", "me", "me"]


def test_long_lists_come_in_pages(api: HfApi) -> None:
    """More discussions than one page holds."""
    for index in range(55):
        api.create_discussion("me/out", f"Talk {index}")
    assert [row.num for row in api.get_repo_discussions("me/out")] == list(range(55, 0, -1))


def test_numbers_are_never_used_twice(api: HfApi) -> None:
    """Discussions and pull requests count together, closed ones too."""
    for expected in (1, 2, 3):
        num = api.create_pull_request("me/out", "Same title").num
        api.change_discussion_status("me/out", num, "closed")
        assert num == expected


def test_refs_tell_pull_requests_when_asked(api: HfApi) -> None:
    """GET refs?include_prs=1."""
    api.create_pull_request("me/out", "One")
    assert api.list_repo_refs("me/out").pull_requests is None
    refs = api.list_repo_refs("me/out", include_pull_requests=True).pull_requests or []
    assert [ref.ref for ref in refs] == ["refs/pr/1"]
    assert api.revision_exists("me/out", "refs/pr/1")


def test_comments_titles_and_their_changes(api: HfApi, stranger: HfApi) -> None:
    """comment, edit, hide, rename; strangers change only what is theirs."""
    api.create_discussion("me/out", "Talk")
    said = stranger.comment_discussion("me/out", 1, "hello")
    assert (said.content, said.author, said.edited) == ("hello", "stranger", False)
    edited = stranger.edit_discussion_comment("me/out", 1, said.id, "hallo")
    assert (edited.content, edited.edited, edited.number_of_edits) == ("hallo", True, 2)
    with pytest.warns(UserWarning, match="irreversible"):
        assert api.hide_discussion_comment("me/out", 1, said.id).hidden
    renamed = api.rename_discussion("me/out", 1, "Another title")
    assert (renamed.old_title, renamed.new_title) == ("Talk", "Another title")
    with pytest.raises(HfHubHTTPError) as error:
        stranger.rename_discussion("me/out", 1, "My title")
    assert refused(error) == 403
    first = api.get_discussion_details("me/out", 1).events[0]
    with pytest.raises(HfHubHTTPError) as error:
        stranger.edit_discussion_comment("me/out", 1, first.id, "x")
    assert refused(error) == 403


def test_discussions_need_a_write_token_and_a_title(hub: DevHub, fetch: Fetch) -> None:
    """401 for nobody, 403 for a read token, 400 without a title, 404 for an unknown number."""
    path, said = "/api/models/me/out/discussions", {"title": "Title", "description": ""}
    assert fetch("POST", path, token="", json=said).status == 401
    assert fetch("POST", path, token=hub.add_token("me", role="read"), json=said).status == 403
    assert fetch("POST", path, json={"title": " "}).status == 400
    assert fetch("GET", f"{path}/1").status == 404
    assert fetch("POST", path, json=said).status == 201
    assert fetch("POST", f"{path}/1/status", json={"status": "merged"}).status == 400
    assert fetch("POST", f"{path}/1/status", json={"status": "open"}).status == 400
    assert fetch("POST", f"{path}/1/comment", json={"comment": " "}).status == 400
    assert fetch("POST", f"{path}/1/comment/nobody/edit", json={"content": "x"}).status == 404
    assert fetch("POST", f"{path}/1/title", json={"title": ""}).status == 400
