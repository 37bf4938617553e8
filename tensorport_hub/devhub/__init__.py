"""A small, faithful Hugging Face Hub on loopback, for trying, tests and CI.

`DevHub` serves the unmodified huggingface_hub and hf_xet clients: repositories, commits, refs, pull
requests, LFS, Xet, gated and private access, rate limits. Faults can be added that do to a client
what networks and servers do. It is a house of its own: it imports nothing else of tensorport_hub,
and only the command line and tests import it.

    server      two listeners in a thread; what tests hold
    app         the table of routes
    *_api       answers, one room a subject; access says who may
    store rooms accounts, repos, history and trees, discussions, webhooks, jobs over database; blobs
    deliveries  what webhooks are sent
    traffic     the one door of both origins: limits, faults, the book of requests
"""

try:
    import aiohttp as _aiohttp  # noqa: F401 (only whether they are there, and so the next two)
    import blake3 as _blake3  # noqa: F401
    import lz4 as _lz4  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"`tensorport_hub.devhub` needs the package `{error.name}`: `pip install '.[devhub]'` in a clone of"
        " tensorport-hub",
        name=error.name,
    ) from error

from tensorport_hub.devhub.database import RootInUse
from tensorport_hub.devhub.deliveries import Delivery
from tensorport_hub.devhub.faults import Fault
from tensorport_hub.devhub.jobs import AskedJob
from tensorport_hub.devhub.seeds import add, let_in, watch
from tensorport_hub.devhub.server import DevHub, serve
from tensorport_hub.devhub.traffic import Seen

__all__ = ["AskedJob", "Delivery", "DevHub", "Fault", "RootInUse", "Seen", "add", "let_in", "serve", "watch"]
