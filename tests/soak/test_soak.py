"""A short form of the soak: kills at some requests and moments, some faults, one trial after another."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.soak.runs import Range, shooting_range
from tests.soak.trials import disturbed, killed_at_moments, killed_at_request

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module", params=["lfs", "xet"])
def at(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Range]:
    with shooting_range(tmp_path_factory.mktemp("soak"), request.param) as made:
        yield made


@pytest.mark.parametrize("answered", [False, True], ids=["before it is carried out", "after"])
def test_killed_at_requests(at: Range, answered: bool) -> None:
    """SIGKILL at requests all over a run, the last ones (commits, status, merge) each: the next run, with an
    empty work folder, ends with the undisturbed mirror, one pull request, and `main` was never half-done."""
    numbers = [*range(0, at.requests - 12, 9), *range(at.requests - 12, at.requests, 2)]
    kills = at.counts.kills
    for number in numbers:
        killed_at_request(at, number, answered=answered)
    assert at.counts.kills - kills > len(numbers) // 2
    assert at.counts.bytes_lost == 0


def test_killed_at_moments(at: Range) -> None:
    """SIGKILL after random times, several times over."""
    for seed in range(3):
        killed_at_moments(at, random.Random(seed), 1.0)
    assert at.counts.bytes_lost == 0


def test_disturbed(at: Range) -> None:
    """Random faults at random requests, tokens that expire, kills besides: documented exit codes, and in the
    end the undisturbed mirror."""
    for seed in range(5):
        disturbed(at, random.Random(seed))
    assert at.counts.faults > 0
    assert at.counts.bytes_lost == 0
