"""Digests as git and git-lfs state them."""

from __future__ import annotations

import hashlib

from tensorport_hub.core.digest import SourceFile, blob_oid, differing, pointer_oid


def test_blob_ids_are_those_of_git():
    """Known ids of `git hash-object`: the empty file, and two texts."""
    assert blob_oid(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert blob_oid(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert blob_oid(b"test content\n") == "d670460b4b4aece5915caf5c68d12f560a9fe3e4"


def test_a_pointer_id_is_that_of_the_pointer_text():
    """For an LFS file git stores the pointer of the specification's own example."""
    oid = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize 12345\n".encode()
    assert pointer_oid(oid, 12345) == hashlib.sha1(b"blob 130\0" + text).hexdigest()
    assert len(text) == 130


def test_a_stated_digest_is_compared():
    """The sha256 where one is stated, else the git id; nothing where neither is."""
    data, sha256 = b"hello\n", hashlib.sha256(b"hello\n").hexdigest()
    assert differing(SourceFile("a", 6), data) is None
    assert differing(SourceFile("a", 6, sha256, "of the pointer"), data) is None
    assert differing(SourceFile("a", 6, "0" * 64), data) == ("0" * 64, sha256)
    assert differing(SourceFile("a", 6, git_oid=blob_oid(data)), data) is None
    assert differing(SourceFile("a", 6, git_oid="1" * 40), data) == ("1" * 40, blob_oid(data))
