"""What may come next, by the text itself: what followed its last few tokens where they were seen before.

Prompt lookup (Saxena 2023), a draft without a model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

GRAMS = (8, 4, 2)
"""Tokens that are looked up together, the best first."""


@dataclass(frozen=True)
class Match:
    """The last `gram` tokens were seen before what is at `at`."""

    gram: int
    at: int


class Lookup:
    """All tokens so far, and where each run of so many was last followed by something."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._seen: dict[int, dict[tuple[int, ...], int]] = {gram: {} for gram in GRAMS}

    def read(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        text = self._text
        for token in tokens:
            for gram, seen in self._seen.items():
                if len(text) >= gram:
                    seen[tuple(text[-gram:])] = len(text)
            text.append(token)

    def match(self) -> Match | None:
        """Of the longest run that was seen before the last time it was."""
        for gram, seen in self._seen.items():
            at = seen.get(tuple(self._text[-gram:]))
            if at is not None:
                return Match(gram, at)
        return None

    def following(self, match: Match, count: int) -> list[int]:
        """So many tokens from there on. Where the text ends, it is taken to repeat itself."""
        period = len(self._text) - match.at
        return [self._text[match.at + i % period] for i in range(count)]
