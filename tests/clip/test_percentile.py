"""Percentiles as bounds: what is taken, and what is refused in words."""

from __future__ import annotations

import numpy as np
import pytest

from mmrun.clip.percentile import bound_at, percentile_in
from mmrun.errors import UserError


@pytest.mark.parametrize(
    ("word", "p"), [("p99", 99), ("p99.9", 99.9), ("p0.5", 0.5), ("p100", 100)]
)
def test_words(word: str, p: float):
    assert percentile_in(word) == p


@pytest.mark.parametrize(
    "word",
    [
        "p",
        "p0",
        "p0.0",
        "p100.1",
        "p101",
        "q99",
        "P99",
        "p-1",
        "p1e1",
        "p99 ",
        "99",
        "",
        "p٩",
        99,
        0.5,
        None,
    ],
)
def test_no_words(word: object):
    assert percentile_in(word) is None


@pytest.mark.parametrize("p", [0.5, 50, 90, 99.9, 100])
def test_the_percentile_is_linear_between_two(p: float):
    sizes = np.sort(np.random.default_rng(0).exponential(size=101))
    place = p / 100 * 100  # of 101 sorted numbers
    low = int(place)
    part = place - low
    want = sizes[low] if part == 0 else (1 - part) * sizes[low] + part * sizes[low + 1]
    assert bound_at(p, np.random.default_rng(1).permutation(sizes), "k") == pytest.approx(
        want, rel=1e-12
    )


def test_zeros_count_for_the_percentile_and_not_for_the_spread():
    sizes = np.array([0.0] * 70 + [1.0] * 29 + [2.0])
    assert bound_at(80, sizes, "k") == 1.0
    with pytest.raises(UserError, match="70 % of what it bounds is 0"):
        bound_at(50, sizes, "k")


REFUSED = {
    "not all that it bounds is finite": [1.0, np.nan, 2.0],
    "not all that it bounds is finite ": [1.0, np.inf],
    "all that it bounds is 0": [0.0, 0.0],
    "101 times the p50": [1.0] * 98 + [101.0] * 3,
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused(said: str):
    with pytest.raises(UserError, match=said.strip()) as caught:
        bound_at(99, np.array(REFUSED[said]), "model.feature_clip")
    assert "model.feature_clip cannot be calibrated" in str(caught.value)
    assert "given: p99" in str(caught.value)


def test_a_spread_of_a_hundred_is_taken():
    assert bound_at(99, np.array([1.0] * 98 + [100.0] * 3), "k") == 100.0
