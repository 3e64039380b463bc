"""Stop strings: streaming in any pieces gives what cutting the whole text gives."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krasis.runtime.stop import StopText

TEXT = st.text("ab", max_size=25)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


def cut(text, stops):
    """The text before the stop string that is complete first, the longest of those; and whether there is one."""
    for end in range(len(text) + 1):
        if done := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end - max(map(len, done))], True
    return text, False


def stream(pieces, stops):
    """What each piece showed until a stop string ended the text, and whether one did."""
    stop, shown = StopText(stops), []
    for piece in pieces:
        shown.append(stop.push(piece))
        if stop.hit:
            break
    return [*shown, stop.flush()], stop.hit


@given(TEXT, STOPS, st.lists(st.integers(0, 25)))
@example("xabcd", ["bcd", "abcde"], [])
@example("aab", ["ab"], [2])
def test_any_pieces_give_the_same_text(text, stops, cuts):
    edges = sorted({0, len(text), *(at for at in cuts if at < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    shown, hit = stream(pieces, stops)
    assert ("".join(shown), hit) == cut(text, stops)


@given(TEXT, STOPS)
def test_nothing_is_held_longer_than_a_stop_string_may_need(text, stops):
    shown, hit = stream(text, stops)
    if not hit:
        assert len(shown[-1]) < max(map(len, stops), default=1)


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stop_strings_text_passes_at_once(stops):
    assert stream("abc", stops) == (["a", "b", "c", ""], False)


def test_text_that_cannot_be_a_stop_string_is_not_held():
    assert stream(["def f(", "x)", "\n", "\n"], ["\n\n"]) == (["def f(", "x)", "", "", ""], True)
