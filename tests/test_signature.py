"""The constructor is the schema: which config values fit which annotations, and what is said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import pytest
import torch

from mmrun.errors import UserError
from mmrun.signature import check, describe, fits

Shared = Literal["a", "b"]


class Target:
    def __init__(
        self,
        structural: int,
        *,
        rate: float = 0.1,
        layers: int = 1,
        on: bool = False,
        word: str = "",
        mode: Literal["mean", "sum"] = "mean",
        widths: list[int] | None = None,
        anything: Any = None,
    ) -> None: ...


GOOD = [
    (1, int),
    (1, float),
    (0.5, float),
    (float("inf"), float),
    (True, bool),
    ("a", str),
    (None, None),
    (None, type(None)),
    (None, int | None),
    (None, Optional[int]),  # noqa: UP045 - as some libraries write it
    (3, int | None),
    ("mean", Literal["mean", "sum"]),
    (2, Literal[1, 2]),
    ([1, 2], list[int]),
    ([], list[int]),
    ((1, 2), tuple[int, int]),
    ([0.9, 1], Sequence[float]),
    ({"a": 1.0}, Mapping[str, float]),
    ({}, dict[str, int]),
    ({"a": {"b": 1}}, dict[str, Any]),
    ([[1], [2]], list[list[int]]),
    ("all", int | Literal["all"]),
    ("none", Literal["none"] | list[float]),
    (1j, Any),
    (0.5, float | torch.Tensor),
]
BAD = [
    (0.5, int),
    (True, int),
    (True, float),
    ("0.5", float),
    (1, bool),
    (0, bool),
    (1, str),
    (None, int),
    ("max", Literal["mean", "sum"]),
    (True, Literal[1, 2]),
    (1.0, Literal[1, 2]),
    ([1, "a"], list[int]),
    ([1.5], list[int]),
    ("12", list[int]),
    ("ab", Sequence[str]),
    (1, list[int]),
    ({"a": "b"}, Mapping[str, float]),
    ([], dict[str, int]),
    ("some", int | Literal["all"]),
    ([1, None], list[int]),
    ("x", float | torch.Tensor),
]


@pytest.mark.parametrize(("value", "annotation"), GOOD, ids=str)
def test_fits(value: Any, annotation: Any):
    assert fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), BAD, ids=str)
def test_does_not_fit(value: Any, annotation: Any):
    assert not fits(value, annotation)


def test_what_fits_passes():
    check(Target, {"rate": 1, "layers": 2, "on": True, "mode": "sum", "widths": [1]}, "group")
    check(Target, {"widths": None, "anything": object()}, "group")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": "x"}, r"group\.rate.*'x'.*a number"),
        ({"layers": 1.5}, r"group\.layers.*1\.5.*an integer"),
        ({"on": "yes"}, r"group\.on.*true or false"),
        ({"mode": "max"}, r"group\.mode.*mean or sum"),
        ({"widths": [1, "b"]}, r"group\.widths.*list of integers or null"),
        ({"layer": 1}, r"takes no layer.*Did you mean layers"),
        ({"zzz": 1}, r"takes no zzz.*rate"),
    ],
)
def test_what_does_not_fit_is_told(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        check(Target, values, "group")


def test_open_ended_and_optimizers_of_torch():
    def takes_all(**knobs: float) -> None: ...

    check(takes_all, {"anything": 1}, "x")
    check(torch.optim.AdamW, {"lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.0}, "optimizer")
    with pytest.raises(UserError, match="momentun"):
        check(torch.optim.SGD, {"momentun": 0.9}, "optimizer")
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        check(torch.optim.SGD, {"lr": "fast"}, "optimizer")


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float, "a number"),
        (int | None, "an integer or null"),
        (Literal["a", "b"], "a or b"),
        (list[int], "a list of integers"),
        (Mapping[str, float], "a mapping"),
        (int | Literal["all"], "an integer or all"),
    ],
)
def test_annotations_in_words(annotation: Any, words: str):
    assert describe(annotation) == words
