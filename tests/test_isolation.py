"""What code in a training may do to its process, and what of it is left afterwards: nothing."""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mmrun.isolation import isolated


def nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def state() -> dict[str, Any]:
    """All that a training must leave as it is, compared by ==."""
    devices = ("cpu", "cuda")
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "random": (torch.get_rng_state().tolist(), random.getstate()),
        "numpy": cast("Any", np.random.get_state())[1].tolist(),  # noqa: NPY002 (the global one)
        "autocast": [torch.is_autocast_enabled(each) for each in devices],
        "autocast type": [torch.get_autocast_dtype(each) for each in devices],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast depth": nesting(),
        "device": (torch.get_default_device(), torch.empty(1).device.type),
        "filters": list(warnings.filters),
        "once": dict(getattr(warnings, "onceregistry", {})),
        "folder": Path.cwd(),
        "variable": os.environ.get("PL_SEED_WORKERS"),
    }


def enter_autocast() -> None:
    torch.autocast("cpu", dtype=torch.float16, cache_enabled=False).__enter__()


def warn_once() -> None:
    getattr(warnings, "onceregistry")[("said", UserWarning)] = 1  # noqa: B009 (no stub knows it)


def leave_and_remove() -> None:
    Path("gone").mkdir()
    os.chdir("gone")
    Path.cwd().rmdir()


DONE: dict[str, Callable[[], Any]] = {
    "deterministic": lambda: torch.use_deterministic_algorithms(True),
    "double": lambda: torch.set_default_dtype(torch.float64),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "no gradients": lambda: torch.set_grad_enabled(False),
    "random numbers": lambda: (torch.rand(1), random.random()),
    "numpy": lambda: np.random.seed(3),  # noqa: NPY002 (the global one)
    "autocast entered": enter_autocast,
    "autocast on": lambda: torch.set_autocast_enabled("cuda", True),
    "autocast type": lambda: torch.set_autocast_dtype("cuda", torch.bfloat16),
    "device": lambda: torch.set_default_device("meta"),
    "filters": lambda: warnings.simplefilter("ignore"),
    "no filters": warnings.resetwarnings,
    "a warning once": warn_once,
    "folder": lambda: (Path("inner").mkdir(), os.chdir("inner")),
    "folder that is gone": leave_and_remove,
    "variable": lambda: os.environ.__setitem__("PL_SEED_WORKERS", "1"),
}


@pytest.mark.parametrize("name", DONE)
@pytest.mark.parametrize("raising", [False, True])
def test_nothing_is_left(name: str, raising: bool):
    with warnings.catch_warnings():  # a failing test must not spoil the next one
        before = state()
        with contextlib.suppress(RuntimeError), isolated():
            DONE[name]()
            if name != "folder that is gone":  # where state cannot look
                assert state() != before
            if raising:
                raise RuntimeError("on purpose")
        assert state() == before


def test_a_warning_is_silent_or_shown_as_before():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with isolated():
            warnings.simplefilter("ignore")
            warnings.warn("not shown", UserWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="shown again"):
            warnings.warn("shown again", UserWarning, stacklevel=1)


def test_weights_are_cast_anew_after_an_autocast_that_was_never_left():
    weight = torch.nn.Parameter(torch.eye(2))
    with isolated():
        enter_autocast()

    def product() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((torch.eye(2) @ weight).sum().detach())

    assert product() == 2
    with torch.no_grad():
        weight.mul_(2)
    assert product() == 4


def test_a_device_that_was_set_before_stays():
    with isolated():
        torch.set_default_device("meta")
        with isolated():
            torch.set_default_device(None)
        assert torch.empty(1).device.type == "meta"
    assert torch.empty(1).device.type == "cpu"
