"""One request for all who ask at the same time.

While a request is under way, others gather, and whoever comes next asks for all of them. So a lone thread
never waits for company, many threads make few requests, and the faster their questions come the more of them
share one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")

_MOST = 100
"""Questions in one request: as many as objects in one of the Hub's own client."""


@dataclass(eq=False)
class _Question(Generic[Q]):
    asked: Q
    answer: Any = None
    is_answered: bool = False


class Together(Generic[Q, A]):
    """Gathers questions of many threads.

    Args:
        request: answers several questions, in their order; an exception among the answers is raised for who
            asked that question, one that is raised by itself for all of them: were they to ask again, one
            after another, each would wait for the failures of all before it.
    """

    def __init__(self, request: Callable[[Sequence[Q]], Sequence[A | Exception]]) -> None:
        self._request = request
        self._waiting: deque[_Question[Q]] = deque()
        self._turn = threading.Lock()

    def ask(self, asked: Q) -> A:
        """The answer; raises what `request` raises."""
        mine = _Question(asked)
        self._waiting.append(mine)
        with self._turn:
            if not mine.is_answered:
                self._answer(self._gathered(mine))
        if isinstance(mine.answer, Exception):
            raise mine.answer
        answer: A = mine.answer
        return answer

    def _gathered(self, mine: _Question[Q]) -> list[_Question[Q]]:
        """One's own question, and those that wait for an answer."""
        questions = [mine]
        while self._waiting and len(questions) < _MOST:
            other = self._waiting.popleft()
            if other is not mine and not other.is_answered:
                questions.append(other)
        return questions

    def _answer(self, questions: list[_Question[Q]]) -> None:
        answers: Sequence[A | Exception]
        try:
            answers = self._request([question.asked for question in questions])
        except Exception as error:
            answers = [error] * len(questions)
        except BaseException:  # an interrupt is this thread's alone
            self._waiting.extend(questions[1:])
            raise
        for question, answer in zip(questions, answers, strict=True):
            question.answer, question.is_answered = answer, True
