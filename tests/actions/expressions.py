"""The expressions of our workflows, evaluated as GitHub does: paths, strings, `==`, `&&`, `||`; nothing else.

An expression with anything more fails the test that meets it, instead of being guessed at. Source:
"Evaluate expressions in workflows and actions" of GitHub's documentation. A path that leads nowhere is
null; `&&` and `||` return one of their sides; null and "" are equal, as both become the number 0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TOKEN = re.compile(r"\s*(?:(?P<op>==|&&|\|\|)|'(?P<text>(?:[^']|'')*)'|(?P<path>[a-zA-Z_][\w.-]*))\s*")
FENCED = re.compile(r"\$\{\{(.*?)\}\}")


def fill(text: str, contexts: Mapping[str, Any]) -> str:
    """A string of a workflow with its `${{ }}` replaced."""
    return FENCED.sub(lambda found: as_text(evaluate(found.group(1), contexts)), text)


def as_text(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def evaluate(text: str, contexts: Mapping[str, Any]) -> Any:
    """One expression.

    Raises:
        ValueError: it holds something that is not read here.
    """
    tokens = []
    at = 0
    while at < len(text):
        found = TOKEN.match(text, at)
        if found is None:
            raise ValueError(f"expression `{text}`: what is `{text[at:]}`?")
        tokens.append(found)
        at = found.end()
    value = _either(tokens, contexts)
    if tokens:
        raise ValueError(f"expression `{text}`: what is `{tokens[0].group()}`?")
    return value


def _either(tokens: list[re.Match[str]], contexts: Mapping[str, Any]) -> Any:
    value = _both(tokens, contexts)
    while _take(tokens, "||"):
        other = _both(tokens, contexts)
        value = value or other
    return value


def _both(tokens: list[re.Match[str]], contexts: Mapping[str, Any]) -> Any:
    value = _equal(tokens, contexts)
    while _take(tokens, "&&"):
        other = _equal(tokens, contexts)
        value = value and other
    return value


def _equal(tokens: list[re.Match[str]], contexts: Mapping[str, Any]) -> Any:
    value = _one(tokens, contexts)
    if _take(tokens, "=="):
        return (value or "") == (_one(tokens, contexts) or "")
    return value


def _take(tokens: list[re.Match[str]], operator: str) -> bool:
    if tokens and tokens[0]["op"] == operator:
        tokens.pop(0)
        return True
    return False


def _one(tokens: list[re.Match[str]], contexts: Mapping[str, Any]) -> Any:
    if not tokens or tokens[0]["op"]:
        raise ValueError("an operator stands alone")
    token = tokens.pop(0)
    if token["path"] is None:
        return token["text"].replace("''", "'")
    first, *rest = token["path"].split(".")
    value = contexts[first]  # a context that the test does not give is an error of the test
    for key in rest:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
