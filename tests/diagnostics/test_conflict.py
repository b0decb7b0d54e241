"""The cosine between modalities' gradients: opposed, aligned, unrelated, and nothing shared."""

from __future__ import annotations

import pytest
import torch

from mmrun.batch import Batch
from mmrun.diagnostics._conflict import alone, cosines


def tensors(*values: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(value) for value in values]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (tensors([1.0, 2.0], [3.0]), tensors([-2.0, -4.0], [-6.0]), -1.0),
        (tensors([1.0, 2.0], [3.0]), tensors([0.5, 1.0], [1.5]), 1.0),
        (tensors([1.0, 2.0], [2.0]), tensors([2.0, 1.0], [-2.0]), 0.0),
        (tensors([3.0, 4.0]), tensors([4.0, 3.0]), 24 / 25),
        # What only one of them reaches does not count: 5 and 7 are no part of it.
        (tensors([1.0, 5.0, 0.0], [0.0]), tensors([-1.0, 0.0, 7.0], [0.0]), -1.0),
    ],
)
def test_known_angles(a: list[torch.Tensor], b: list[torch.Tensor], expected: float):
    found = cosines({"a": a, "b": b})
    assert float(found["a", "b"]) == pytest.approx(expected)


def test_every_pair_once_in_order():
    g = torch.Generator().manual_seed(0)
    given = {name: [torch.randn(4, generator=g)] for name in ("c", "a", "b")}
    found = cosines(given)
    assert list(found) == [("c", "a"), ("c", "b"), ("a", "b")]
    for (one, other), value in found.items():
        expected = torch.cosine_similarity(given[one][0], given[other][0], dim=0)
        assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_nothing_shared_has_no_angle():
    found = cosines({"a": tensors([1.0, 0.0]), "b": tensors([0.0, 1.0])})
    assert found["a", "b"].isnan()
    assert cosines({"a": []}) == {}


def test_alone_are_the_samples_that_have_it_without_the_rest():
    batch = Batch(
        {"a": torch.arange(4.0), "b": torch.arange(4.0) + 10},
        {
            "a": torch.tensor([True, False, True, True]),
            "b": torch.tensor([True, True, False, True]),
        },
        {"a": torch.ones(4, 2, dtype=torch.bool)},
        torch.tensor([5, 6, 7, 8]),
        torch.tensor([50, 60, 70, 80]),
    )
    mine = alone(batch, "a")
    assert mine.index.tolist() == [50, 70, 80]
    assert mine.target.tolist() == [5, 7, 8]
    assert mine.inputs["b"].tolist() == [10, 12, 13]
    assert mine.mask["a"].shape == (3, 2)
    assert mine.present["a"].tolist() == [True] * 3
    assert mine.present["b"].tolist() == [False] * 3
    assert batch.present["b"].sum() == 3, "the batch itself is as it was"
