"""Hill's estimator: the known index of Pareto samples, and what a window makes of norms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mmrun.diagnostics._tail import LEAST, TailIndex, hill


@pytest.mark.parametrize("alpha", [1.5, 3.0])
@pytest.mark.parametrize("k", [50, 400])
@pytest.mark.parametrize("seed", range(5))
def test_pareto_samples(alpha: float, k: int, seed: int):
    """Within three standard errors, alpha / sqrt(k); their mean over many samples within a tenth of that."""
    rng = np.random.default_rng(seed)
    found = hill(7.0 * rng.random(4000) ** (-1 / alpha), k)
    assert found == pytest.approx(alpha, abs=3 * alpha / k**0.5)


def test_the_standard_error_is_alpha_over_the_root_of_k():
    rng = np.random.default_rng(0)
    found = [hill(rng.random(2000) ** (-1 / 1.5), 100) for _ in range(400)]
    assert np.mean(found) == pytest.approx(1.5 * 100 / 99, abs=3 * 0.15 / 20)
    assert np.std(found) == pytest.approx(0.15, rel=0.12)


def test_by_hand():
    values = np.array([1.0, math.e**3, math.e, math.e**2])
    assert hill(values, 2) == pytest.approx(2 / (1 + 2))
    assert hill(values, 3) == pytest.approx(3 / (1 + 2 + 3))
    assert hill(100 * values, 2) == pytest.approx(2 / 3), "a scale changes nothing"
    assert hill(np.ones(9), 3) == math.inf


def test_a_normal_distribution_has_a_large_index_and_a_heavy_one_a_small_one():
    rng = np.random.default_rng(1)
    norms = np.linalg.norm(rng.standard_normal((1000, 50)), axis=1)
    cauchy = np.abs(rng.standard_cauchy(1000))
    tails = TailIndex(2, window=1000, share=0.1)
    tails.extend(np.stack([norms, cauchy], axis=1))
    light, heavy = tails.values()
    assert light is not None
    assert light > 10
    assert heavy == pytest.approx(1.0, abs=0.3)


def test_a_window_forgets_and_leaves_out_what_has_no_logarithm():
    rng = np.random.default_rng(2)
    old, new = rng.random((2, 200, 1)) ** -0.5
    tails = TailIndex(1, window=200, share=0.1)
    tails.extend(old[:95])
    assert tails.values() == [None], "nine norms in the tail"
    tails.extend(old[95:])
    for piece in np.array_split(new, 7):
        tails.extend(piece)
    assert tails.values() == [hill(new[:, 0], 20)]
    bad = new.copy()
    bad[:3, 0] = (math.nan, math.inf, 0.0)
    tails.extend(bad)
    assert tails.values() == [hill(new[3:, 0], 19)]
    tails.extend(np.full((200, 1), math.nan))
    assert tails.values() == [None]
    assert LEAST == 10
