"""Xet storage: content-addressed chunks in xorbs, files as shards.

`Cas` is the server's own store with its HTTP routes, `LocalCas` reads the directory of hf_xet's `local://`
store, `XetBlob` is a file in either.

    errors, hashing         what is refused; the protocol's hashes
    xorb, shard             the two formats, bytes in, facts out
    blob, reconstruction    a file as terms: read by range, or as the client's recipe
    store, local            where xorbs and files lie
    admission, cas          what an upload must prove; the HTTP side

"""

from tensorport_hub.devhub.xet.blob import XetBlob
from tensorport_hub.devhub.xet.cas import Cas
from tensorport_hub.devhub.xet.local import LocalCas

__all__ = ["Cas", "LocalCas", "XetBlob"]
