"""What a training changes in its process is put back: point after point gives the numbers of a fresh process.

The settings that torch, numpy and Python have functions for. What a user's code patches into a library, and hooks
that it registers for all modules or optimizers, are its own: nothing public says what is there, and it must remove
them itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch

# What Lightning sets for deterministic kernels; it outlives the Trainer.
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
_AUTOCAST = ("cpu", "cuda")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Global switches, generators, filters, variables and the folder are afterwards what they were before."""
    with _autocast(), _default_device(), _warnings(), _folder(), _switches():
        yield


@contextlib.contextmanager
def _switches() -> Iterator[None]:
    """Torch's global switches, the generators and Lightning's variables."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("benchmark", "deterministic")}
    matmul = torch.get_float32_matmul_precision()
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    grad = torch.is_grad_enabled()
    generators = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 (the global one)
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        for name, flag in flags.items():
            setattr(cudnn, name, flag)
        torch.set_float32_matmul_precision(matmul)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)
        torch.set_rng_state(generators[0])
        np.random.set_state(generators[1])  # noqa: NPY002
        random.setstate(generators[2])
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch.cuda.is_initialized():
            gc.collect()  # a model is part of cycles; its memory is another point's
            torch.cuda.empty_cache()


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    """Mixed precision: where it is on, in which type, and how deep; casts are kept from the outermost on."""
    on = {kind: torch.is_autocast_enabled(kind) for kind in _AUTOCAST}
    dtypes = {kind: torch.get_autocast_dtype(kind) for kind in _AUTOCAST}
    cached, depth = torch.is_autocast_cache_enabled(), _autocast_depth()
    try:
        yield
    finally:
        for kind in _AUTOCAST:
            torch.set_autocast_enabled(kind, on[kind])
            torch.set_autocast_dtype(kind, dtypes[kind])
        torch.set_autocast_cache_enabled(cached)
        if (
            _autocast_depth() != depth
        ):  # entered and never left: casts would outlive their weights' steps
            while _autocast_depth() > depth:
                torch.autocast_decrement_nesting()
            torch.clear_autocast_cache()


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


@contextlib.contextmanager
def _default_device() -> Iterator[None]:
    """Where tensors are made that name no device. Setting it slows every call down: only where it was changed."""
    before = torch.get_default_device()
    try:
        yield
    finally:
        if torch.get_default_device() != before:
            torch.set_default_device(None if before.type == "cpu" else before)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Which warnings are shown, and which once. Python forgets what it has shown where filters change: only then."""
    filters, shown = list(warnings.filters), _once().copy()
    try:
        yield
    finally:
        if list(warnings.filters) != filters:
            warnings.resetwarnings()  # tells Python's own copy that they change
            warnings.filters = filters
        _once().clear()
        _once().update(shown)


def _once() -> dict[object, object]:
    return getattr(warnings, "onceregistry", {})  # known to Python's documentation only by its name


@contextlib.contextmanager
def _folder() -> Iterator[None]:
    """The working directory."""
    before = None
    with contextlib.suppress(OSError):  # it may have been removed
        before = os.getcwd()
    try:
        yield
    finally:
        if before is not None:
            with contextlib.suppress(OSError):
                os.chdir(before)
