"""What a training changes in its process is put back: point after point gives the numbers of a fresh process."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Iterator

import numpy as np
import torch

# What Lightning sets for deterministic kernels; it outlives the Trainer.
_VARIABLES = ("CUBLAS_WORKSPACE_CONFIG", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Torch's global switches, the generators and Lightning's variables are afterwards what they were before."""
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
