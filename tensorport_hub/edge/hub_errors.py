"""What the Hub's own client raises, as errors of ours: whose fault it is, and whether it may pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tensorport_hub.core.tensor import shorten
from tensorport_hub.edge.http import Refusal, failure
from tensorport_hub.errors import DestinationError, TensorportError, UseError


class Absent(DestinationError):
    """A destination repository that is not there."""


class Forbidden(DestinationError):
    """This account may not do that."""


@contextmanager
def translated(what: str, refusal: Refusal) -> Iterator[None]:
    """The client's exceptions as ours."""
    try:
        yield
    except TensorportError:
        raise
    except HFValidationError as error:
        raise UseError(f"{what} has an invalid name: {error}") from None
    except HfHubHTTPError as error:
        raise _refused(error, what, refusal) from None
    except OfflineModeIsEnabled:
        raise refusal(f"{what} is not asked for: `HF_HUB_OFFLINE` is set", hint="unset it") from None
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise refusal(f"{what} can't be reached: {type(error).__name__}: {error}", transient=True) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = shorten(f"{type(error).__name__}: {error}")
        raise refusal(f"{what} was answered in a way that makes no sense: {said}") from None


def _refused(error: HfHubHTTPError, what: str, refusal: Refusal) -> TensorportError:
    response = error.response
    made = failure(response.status_code, response.headers, what, refusal)
    if isinstance(error, RevisionNotFoundError):
        made.hint = "the revision must be a branch, a tag or a commit of the repository"
    elif isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        made.hint = "check the name; a private repository needs a token that may read it"
        if refusal is DestinationError:
            return Absent(made.message, hint=made.hint)
    if response.status_code == 403 and refusal is DestinationError:
        return Forbidden(made.message, hint=made.hint)
    return made
