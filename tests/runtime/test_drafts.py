"""What is drafted, and when: pure functions of the text, of what was right before, and of what passes cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krasis.runtime.drafts import MARGIN, PRIORS, WIDTHS, Acceptance, Drafter, Learnt, Planned, best_width, expected
from krasis.runtime.lookup import GRAMS, Lookup, Match

FREE = Planned(dict.fromkeys((1, *WIDTHS), 1.0))
DEAR = Planned({width: float(width) for width in (1, *WIDTHS)})


def read(text):
    lookup = Lookup()
    lookup.read(text)
    return lookup


def written_out(text):
    """The longest of the runs at the end that was seen before something, and the last place where it was."""
    for gram in GRAMS:
        places = [at for at in range(gram, len(text)) if text[at - gram : at] == text[-gram:]]
        if places:
            return Match(gram, places[-1])
    return None


@given(st.lists(st.integers(0, 2), max_size=60))
def test_a_match_is_the_longest_and_then_the_latest(text):
    assert read(text).match() == written_out(text)


def test_what_follows_repeats_itself_past_the_end():
    lookup = read([5, 1, 2, 3, 1, 2])
    assert lookup.match() == Match(2, 3)
    assert lookup.following(Match(2, 3), 7) == [3, 1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize("text", [[], [1], [1, 2], [1, 2, 3, 1]])
def test_nothing_is_known_of_a_text_that_repeats_nothing(text):
    assert read(text).match() is None
    assert Drafter(FREE).draft(7) == []


def test_a_pass_gives_what_is_right_and_one_more():
    assert expected(0.0, 8) == 1
    assert expected(1.0, 8) == 8
    assert expected(0.5, 4) == 1 + 0.5 + 0.25 + 0.125


@pytest.mark.parametrize(
    ("acceptance", "costs", "most", "width"),
    [
        (0.9, FREE, 8, 8),
        (0.9, FREE, 7, 4),
        (0.9, FREE, 1, 1),
        (0.9, FREE, -1, 1),
        (0.0, FREE, 8, 1),
        (1.0, DEAR, 8, 1),
        # 1.5 tokens for 1.4 passes is more than the margin asks, 1.875 for 2.2 is less than none.
        (0.5, Learnt(0.4), 8, 2),
        (0.5, Learnt(0.5), 8, 1),
    ],
)
def test_widths_pay_or_are_not_taken(acceptance, costs, most, width):
    assert best_width(acceptance, costs, most) == width


@given(st.floats(0, 1), st.floats(0, 1.5), st.integers(0, 10))
def test_no_other_width_is_better(acceptance, slope, most):
    costs = Learnt(slope)
    chosen = best_width(acceptance, costs, most)
    assert chosen == 1 or chosen <= most
    rate = expected(acceptance, chosen) / costs(chosen)
    for width in (width for width in WIDTHS if width <= most and width != chosen):
        found = expected(acceptance, width) / costs(width)
        assert found <= (MARGIN if chosen == 1 else rate)
    assert chosen == 1 or rate > MARGIN


def test_acceptance_goes_from_its_prior_to_what_is_seen_and_back():
    found = Acceptance(0.5)
    assert found.share == 0.5
    for _ in range(30):
        found.saw(right=True)
    assert 0.8 < found.share < 1
    for _ in range(15):
        found.saw(right=False)
    assert found.share < 0.4


def test_what_further_tokens_cost_is_learnt_and_doubted_again():
    costs = Learnt(0.5)
    for _ in range(20):
        costs.took(1, 0.010)
        costs.took(8, 0.017)
    assert costs(1) == 1
    assert costs(8) == pytest.approx(1.7, abs=0.1)
    for _ in range(1000):
        costs.took(1, 0.010)
    assert costs.slope == pytest.approx(0.5, abs=0.01)


def test_one_slow_token_changes_little():
    costs = Learnt(0.5)
    for seconds in (0.01, 0.01, 10.0):
        costs.took(1, seconds)
    costs.took(4, 0.025)
    assert costs.slope == pytest.approx(0.5, abs=0.1)


def test_passes_that_take_no_time_at_all_or_ages_stay_within_bounds():
    costs = Learnt(0.5)
    costs.took(1, 0.01)
    for seconds in (0.0, 1e9):
        for _ in range(50):
            costs.took(2, seconds)
        assert 0 <= costs.slope <= 1.5


def test_drafts_are_learnt_from_without_being_made():
    drafter = Drafter(DEAR)
    drafter.read([1, 2, 3] * 10)
    assert drafter.draft(7) == []
    drafter.costs = Learnt(0.1)
    assert drafter.draft(7) == [1, 2, 3, 1, 2, 3, 1]
    assert drafter.draft(2) == [1]
    assert drafter.draft(0) == []


def test_a_prompt_is_quoted_but_says_nothing_of_how_often():
    drafter = Drafter(Learnt(0.05))
    drafter.begin([1, 2, 3, 4] * 20)
    assert drafter._acceptance[8].share == PRIORS[8]
    assert drafter.draft(3) == [1, 2, 3]


def test_texts_that_repeat_themselves_wrongly_are_left_alone():
    drafter, wrong = Drafter(Learnt(0.4)), 0
    drafter.begin(range(1000))
    for i in range(60):
        # Two tokens of the prompt, and another than followed them there.
        drafter.read([10 * i, 10 * i + 1])
        wrong += bool(drafter.draft(7))
        drafter.read([5000 + i])
    assert wrong == 0
