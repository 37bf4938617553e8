"""How to upload LFS objects, asked for in one request by all who are ready at the same time.

While a request is under way, others gather, and whoever comes next asks for all of them. So a lone writer
never waits for company, many writers make few requests, and the faster files end the more of them share one.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from tensorport_hub.edge.hub_answers import LfsUpload
from tensorport_hub.edge.hub_client import HubClient
from tensorport_hub.errors import DestinationError
from tensorport_hub.ports import Receipt

_MOST = 100
"""Objects in one request, as the Hub's own client has it."""


@dataclass(eq=False)
class _Question:
    receipt: Receipt
    answer: LfsUpload | DestinationError | None = None
    is_answered: bool = False


class LfsBatch:
    """The batch endpoint of one repository. Thread-safe."""

    def __init__(self, client: HubClient, repo_id: str) -> None:
        self._client, self._repo_id = client, repo_id
        self._waiting: deque[_Question] = deque()
        self._turn = threading.Lock()

    def ask(self, receipt: Receipt) -> LfsUpload | None:
        """How to upload an object; None where the Hub has it already.

        Raises:
            DestinationError: it is refused, or the request failed; that one is for who made it alone, the
                others ask themselves.
        """
        mine = _Question(receipt)
        self._waiting.append(mine)
        with self._turn:
            if not mine.is_answered:
                self._answer(self._gathered(mine))
        if isinstance(mine.answer, DestinationError):
            raise mine.answer
        return mine.answer

    def _gathered(self, mine: _Question) -> list[_Question]:
        """One's own question, and those that wait for an answer."""
        asked = [mine]
        while self._waiting and len(asked) < _MOST:
            other = self._waiting.popleft()
            if other is not mine and not other.is_answered:
                asked.append(other)
        return asked

    def _answer(self, asked: list[_Question]) -> None:
        try:
            answers = self._client.lfs_batch(self._repo_id, [question.receipt for question in asked])
        except BaseException:
            self._waiting.extend(asked[1:])
            raise
        for question in asked:
            question.answer, question.is_answered = answers[question.receipt.sha256], True
