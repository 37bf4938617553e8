"""The protocol's hashes, against the specification's examples and the real client's answers."""

from __future__ import annotations

import pytest
from blake3 import blake3

from tensorport_hub.devhub.xet.errors import Refused
from tensorport_hub.devhub.xet.hashing import (
    ZERO_HASH,
    chunk_hash,
    file_hash,
    hash_bytes,
    hash_text,
    xorb_hash,
)
from tests.devhub.xet.conftest import Client, Recording, Server, random_bytes

NODE_KEY = bytes.fromhex("017ec5c7a5472996fd946666b48a02e65ddd536f37c76dd2f86352e64a53713f")


def test_text_form() -> None:
    """The text of a hash is four little-endian words: the specification's own example."""
    digest = bytes(range(32))
    text = "07060504030201000f0e0d0c0b0a090817161514131211101f1e1d1c1b1a1918"
    assert hash_text(digest) == text
    assert hash_bytes(text) == digest


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 62 + "\n0", "٣" * 64])
def test_malformed_text(text: str) -> None:
    """Anything but 64 lower-case hex digits is refused."""
    with pytest.raises(Refused, match="64 lower-case hex digits"):
        hash_bytes(text)


def test_small_trees() -> None:
    """No chunk is the zero hash; one chunk is its own root, and a file's hash is one keyed hash more."""
    node = (chunk_hash(b"one chunk"), 9)
    assert xorb_hash([]) == file_hash([]) == ZERO_HASH
    assert xorb_hash([node]) == node[0]
    assert file_hash([node]) != node[0]


def test_one_chunk_file(server: Server, client: Client) -> None:
    """The file hash of a one-chunk file is the one hf_xet reports, and so is that of many chunks."""
    data = b"a file of one chunk"
    (info,) = client.upload(data)
    assert hash_text(file_hash([(chunk_hash(data), len(data))])) == info.hash
    assert server.cas.find(info.sha256) is not None


def test_order_matters() -> None:
    """Two chunks in another order, or of other lengths, have another root."""
    nodes = [(chunk_hash(random_bytes(100, i)), 100 + i) for i in range(30)]
    longer = [(digest, nbytes + 1) for digest, nbytes in nodes]
    assert len({xorb_hash(nodes), xorb_hash(nodes[::-1]), xorb_hash(longer)}) == 3


def test_recorded_xorb_hash(server: Server, recording: Recording) -> None:
    """The hash hf_xet puts in the URL of a xorb of many chunks is the root over those chunks."""
    status, _, _ = server.call("POST", f"/cas/v1/xorbs/default/{recording.xorb_hash}", recording.xorb)
    assert status == 200


def test_tree_in_one_go() -> None:
    """The growing tree has the root of the specification's level by level procedure, at every size."""
    nodes = [(chunk_hash(i.to_bytes(2, "little")), 1 + i) for i in range(700)]
    for count in [*range(1, 60), 100, 250, 699, 700]:
        level = nodes[:count]
        while len(level) > 1:
            parents = []
            while level:
                cuts = (i + 1 for i in range(2, min(9, len(level))) if level[i][0][24] % 4 == 0)
                group, level = level[: (cut := next(cuts, 9))], level[cut:]
                text = "".join(f"{hash_text(digest)} : {nbytes}\n" for digest, nbytes in group)
                parents.append((blake3(text.encode(), key=NODE_KEY).digest(), sum(n for _, n in group)))
            level = parents
        assert xorb_hash(iter(nodes[:count])) == level[0][0], count
