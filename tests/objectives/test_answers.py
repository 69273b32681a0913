"""Exact match and F1 of answers, against counts made by hand."""

import pytest

from fedsvd.errors import InputError
from fedsvd.objectives.answers import judged, overlap, plain


@pytest.mark.parametrize(
    ("said", "right", "exact", "f1"),
    [
        (" The Rhine.", "Rhine", 1, 1),  # case, article, punctuation, blanks
        ("an apple, a pear", "apple pear", 1, 1),
        ("in the year 1999", "1999", 0, 0.5),  # in year 1999: precision 1/3, recall 1
        ("the the the", "a", 1, 1),  # nothing is left of either
        ("", "Rhine", 0, 0),
        (
            "red red blue",
            "red blue blue",
            0,
            2 / 3,
        ),  # two words are shared, each as often as in both
        ("theatre", "atre", 0, 0),  # an article within a word stays
        ("U.S.", "us", 1, 1),
        ("well-known", "well known", 0, 0),  # punctuation goes without a blank in its place
    ],
)
def test_one_answer(said, right, exact, f1):
    found = judged([said], [right])
    assert (found.exact_match, found.f1) == (exact, pytest.approx(f1))
    assert overlap(said, right) == overlap(right, said)


def test_the_best_of_several_accepted_answers_counts_and_the_mean_is_over_rows():
    found = judged(["1999", "Bonn"], [["in 1999", "1999", "1998"], ["Cologne"]])
    assert (found.exact_match, found.f1, found.said) == (0.5, 0.5, ("1999", "Bonn"))
    assert plain("  A  (Rhine)! ") == "rhine"


@pytest.mark.parametrize(("said", "right"), [([], []), (["x"], [[]])])
def test_no_answer_is_refused(said, right):
    with pytest.raises(InputError, match=r"^answers: "):
        judged(said, right)
