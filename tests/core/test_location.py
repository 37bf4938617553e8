"""What SRC and DST mean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorport_hub.core.location import (
    FolderLocation,
    GitLocation,
    HubLocation,
    parse_destination,
    parse_mirror,
    parse_source,
)
from tensorport_hub.errors import UseError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", HubLocation("org/model")),
        ("org/model/", HubLocation("org/model")),
        ("gpt2", HubLocation("gpt2")),
        ("Qwen/Qwen2.5-0.5B_x", HubLocation("Qwen/Qwen2.5-0.5B_x")),
        ("org/model@main", HubLocation("org/model", "main")),
        ("org/model@refs/pr/3", HubLocation("org/model", "refs/pr/3")),
        ("org/model@feature/x", HubLocation("org/model", "feature/x")),
        ("org/model@0123abc", HubLocation("org/model", "0123abc")),
        ("hf://org/model", HubLocation("org/model")),
        ("hf://models/org/model", HubLocation("org/model")),
        ("hf://org/model/unet", HubLocation("org/model", None, "unet")),
        ("hf://org/model/a/b/", HubLocation("org/model", None, "a/b")),
        ("hf://org/model@v1", HubLocation("org/model", "v1")),
        ("hf://org/model@v1/unet/x", HubLocation("org/model", "v1", "unet/x")),
        ("hf://org/model@refs/pr/1/unet", HubLocation("org/model", "refs/pr/1", "unet")),
        ("hf://org/model@refs/convert/parquet", HubLocation("org/model", "refs/convert/parquet")),
        ("hf://org/model@feature%2Fx/unet", HubLocation("org/model", "feature/x", "unet")),
        ("/tmp/model", FolderLocation("/tmp/model")),
        ("./model", FolderLocation("./model")),
        ("../model", FolderLocation("../model")),
        (".", FolderLocation(".")),
        ("~/model", FolderLocation("~/model")),
        ("C:\\model", FolderLocation("C:\\model")),
        ("d:/model", FolderLocation("d:/model")),
        ("\\\\host\\share", FolderLocation("\\\\host\\share")),
    ],
)
def test_sources(text, expected):
    """Every documented form of SRC, where no folder of that name exists."""
    assert parse_source(text, is_folder=False) == expected


@pytest.mark.parametrize("hub", ["https://huggingface.co", "https://hf.co", "http://127.0.0.1:7860"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("org/model", HubLocation("org/model")),
        ("org/model/", HubLocation("org/model")),
        ("gpt2", HubLocation("gpt2")),
        ("gpt2/tree/main", HubLocation("gpt2", "main")),
        ("org/model/tree/v1.0", HubLocation("org/model", "v1.0")),
        ("org/model/tree/refs%2Fpr%2F1/unet/x", HubLocation("org/model", "refs/pr/1", "unet/x")),
        ("org/model/commit/0123abc?diff=split#x", HubLocation("org/model", "0123abc")),
    ],
)
def test_addresses_of_pages(hub, path, expected):
    """What a browser shows for a model is the model, of the Hub in use and of huggingface.co."""
    assert parse_source(f"{hub}/{path}", is_folder=False, endpoint="http://127.0.0.1:7860/") == expected
    assert parse_source(f"{hub}/{path}", is_folder=False) == expected


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("https://github.com/me/x.git", "`git+https://github.com/me/x.git`"),
        ("https://me:s3cret@github.com/me/x.git", "`git+https://github.com/me/x.git`"),
        ("github.com/me/x", "`git+https://github.com/me/x`"),
        ("me/x/", "on the Hub it is `me/x`, a local folder is `./me/x/`"),
        ("me/bad name", ""),
    ],
)
def test_what_was_meant_by_a_wrong_destination(text, hint):
    """The message names what a destination may be, the hint what this one may have been."""
    with pytest.raises(UseError) as caught:
        parse_destination(text)
    for form in ("`org/name`", "`./out`", "`git+https://host/repo.git`"):
        assert form in caught.value.message
    assert "@revision" not in caught.value.message
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert hint in caught.value.hint
    assert bool(hint) == bool(caught.value.hint)


@pytest.mark.parametrize("text", ["", " "])
def test_nothing_is_neither(text):
    """An unset variable is a use error, though an empty path is the current folder."""
    for parse in (lambda: parse_source(text, is_folder=True), lambda: parse_destination(text)):
        with pytest.raises(UseError, match="is empty"):
            parse()
    with pytest.raises(UseError, match="is empty"):
        parse_mirror(text, is_folder=True)


def test_a_mirror_that_is_read():
    """A folder that exists is meant by its bare name; `hf://` and git remotes never mean one."""
    assert parse_mirror("kept", is_folder=True) == FolderLocation("kept")
    assert parse_mirror("hf://a/b", is_folder=True) == HubLocation("a/b")
    assert parse_mirror("a/b", is_folder=False) == HubLocation("a/b")


@pytest.mark.parametrize("text", ["org/model", "gpt2", "any thing"])
def test_a_folder_that_exists_is_meant(text):
    """A name that is an existing folder means the folder; `hf://` never does."""
    assert parse_source(text, is_folder=True) == FolderLocation(text)
    assert parse_source(f"hf://{'a/b'}", is_folder=True) == HubLocation("a/b")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "org/",
        "/",
        "org/model/sub",
        "org/mo del",
        "org/model@",
        "@main",
        "org//model",
        "-org/model",
        "org/-model",
        "org/model.git",
        "org/model.",
        "org/model-",
        "org/a..b",
        "org/a--b",
        "org/mödel",
        "org/model\n",
        "o" * 97 + "/model",
        "https://example.org/org/model",
        "https://huggingface.co/datasets/org/data",
        "https://huggingface.co/org/model/blob/main/x",
        " ",
        "hf://",
        "hf://org",
        "hf://org/",
        "hf://@main",
        "hf://org/model.git/x",
    ],
)
def test_what_is_no_source_is_refused(text):
    """Everything else is a use error that quotes it and names the forms."""
    if text == "/":
        assert parse_source(text, is_folder=False) == FolderLocation("/")
        return
    with pytest.raises(UseError) as caught:
        parse_source(text, is_folder=False, endpoint="http://127.0.0.1:7860")
    assert f"`{text}`" in caught.value.message or not text.strip()
    assert "`org/model`" in caught.value.message or "revision" in caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model-npy", HubLocation("org/model-npy")),
        ("hf://org/model-npy", HubLocation("org/model-npy")),
        ("./out", FolderLocation("./out")),
        ("/out", FolderLocation("/out")),
        ("~/out", FolderLocation("~/out")),
        ("git+https://example.org/x.git", GitLocation("https://example.org/x.git")),
        ("git+https://example.org:8443/a/b", GitLocation("https://example.org:8443/a/b")),
        ("git+http://[::1]:80/a/b.git", GitLocation("http://[::1]:80/a/b.git")),
        ("git+ssh://git@example.org:22/~me/x.git", GitLocation("ssh://git@example.org:22/~me/x.git")),
        ("git+ssh://example.org/x.git", GitLocation("ssh://example.org/x.git")),
        ("git+file:///srv/git/x.git", GitLocation("file:///srv/git/x.git")),
        ("git@example.org:x.git", GitLocation("git@example.org:x.git")),
        ("git@example.org:/srv/git/x.git", GitLocation("git@example.org:/srv/git/x.git")),
    ],
)
def test_destinations(text, expected):
    """DST is a whole repository with its owner, a folder that is spelled as one, or a git remote."""
    assert parse_destination(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("out", "has no owner"),
        ("org/model@main", "must be a whole repository"),
        ("hf://org/model/sub", "must be a whole repository"),
        ("git+https://example.org", "no git remote"),
        ("git+https://example.org/", "no git remote"),
        ("git+https:///x.git", "no git remote"),
        ("git+https://example.org/x.git?y=1", "no git remote"),
        ("git+https://example.org/x.git#main", "no git remote"),
        ("git+https://example.org/x y.git", "no git remote"),
        ("git+https://-oProxyCommand=x/y", "no git remote"),
        ("git+ssh://-oProxyCommand=x/y", "no git remote"),
        ("git+file://host/x.git", "no git remote"),
        ("git+file:///", "no git remote"),
        ("git+ext::sh -c x", "no git remote"),
        ("git+./x.git", "no git remote"),
        ("git@example.org", "no git remote"),
        ("git@-oProxyCommand=x:y", "no git remote"),
        ("git@example.org:-x", "no git remote"),
        ("org/mo del", "is no destination"),
        ("org/name/", "is no destination"),
        ("github.com/me/x", "is no destination"),
        ("https://github.com/me/x.git", "is no destination"),
    ],
)
def test_what_is_no_destination_is_refused(text, words):
    """A revision, a subfolder, a missing owner and what git should never be given are use errors in words."""
    with pytest.raises(UseError, match=words) as caught:
        parse_destination(text)
    assert f"`{text}`" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "git+https://me:s3cret@example.org/x.git",
        "git+https://s3cret@example.org/x.git",
        "git+https://s3cret:x-oauth-basic@example.org/x.git",
        "git+ssh://git:s3cret@example.org/x.git",
        "git+ftp://me:s3cret@example.org/x.git",
        "git+https://me:s3cret@example.org",
        "git+https://me:a@s3cret@example.org/x.git",
        "git+https://me:a/s3cret@example.org/x.git",
    ],
)
def test_a_secret_in_a_url_is_refused_unquoted(text):
    """A user or password in a URL is a use error, which does not repeat it."""
    with pytest.raises(UseError) as caught:
        parse_destination(text)
    assert "s3cret" not in caught.value.message + caught.value.hint
    assert "example.org" in caught.value.message


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.text(st.sampled_from("ab/@.:-hf"), max_size=20), st.booleans())
def test_any_text_is_a_location_or_a_use_error(text, is_folder):
    """No text gives anything else, and an accepted id is one that is safe in a URL."""
    for parse in (lambda t: parse_source(t, is_folder=is_folder), parse_destination):
        for given_text in (text, f"hf://{text}"):
            try:
                location = parse(given_text)
            except UseError:
                continue
            if isinstance(location, HubLocation):
                assert location.repo_id.isascii()
                assert not set(location.repo_id) & set(" ?#%@:\\\n")
                assert location.repo_id.count("/") <= 1
                assert ".." not in location.repo_id
                assert location.revision != ""
                assert location.subfolder != ""
            elif isinstance(location, GitLocation):
                assert given_text in (location.url, f"git+{location.url}")
            else:
                assert location == FolderLocation(given_text)
