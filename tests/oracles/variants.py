"""Settings of every law worth trying: each knob, each granularity, and warm-ups that end within a few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tests.oracles.options import OPTIONS, config

INF = math.inf
OFF: dict[str, Any] = {"threshold": INF}

# A budget and what it is shared out by: the same knobs for norm, normalize and smooth.
BUDGETS: list[dict[str, Any]] = [
    {"threshold": 1.0, "p": 3.5, "per": "modality"},
    {"threshold": 1.0, "per": "modality", "budget": "each"},
    {"threshold": 1.0, "per": "tensor"},
    {"threshold": 0.4, "per": "tensor", "budget": "each", "p": INF},
    {"threshold": 1.0, "per": "modality", "split": "size"},
    {"threshold": 2.0, "per": "tensor", "split": "size", "p": 1.0},
    {"threshold": 1.0, "per": "modality", "split": "norm"},
    {"threshold": 1.0, "per": "tensor", "split": "norm", "p": 3.5},
    {"threshold": 1.0, "per": "tensor", "split": "norm", "p": INF},
    {"threshold": 1.0, "per": "unit", "split": "equal"},
    {"threshold": 1.0, "per": "unit", "split": "norm"},
    {"threshold": 0.2, "per": "unit", "split": "size", "budget": "each", "p": 1.0},
]

VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "none": [{}],
    "value": [{}, {"threshold": 0.01}, {"threshold": 1.0}, OFF],
    "norm": [
        {},
        {"threshold": 0.3},
        OFF,
        {"threshold": 2.0, "eps": 1e-6},
        {"threshold": 0.5, "p": INF},
        {"threshold": 3.0, "p": 1.0},
        {"threshold": INF, "per": "modality", "split": "norm"},
        *BUDGETS,
    ],
    "normalize": [
        {},
        OFF,
        {"threshold": 0.3, "p": INF},
        {"threshold": 3.0, "p": 1.0, "eps": 0.0},
        {"threshold": 3.0, "eps": 0.5, "per": "modality"},
        *BUDGETS,
    ],
    "smooth": [
        {},
        OFF,
        {"threshold": 0.3, "p": INF},
        {"threshold": 3.0, "p": 1.0},
        *BUDGETS,
    ],
    "agc": [
        {},
        {"threshold": 0.5},
        {"threshold": 0.1, "eps": 3.0},
        {"per": "tensor", "exclude": []},
        {"per": "modality"},
        {"per": "global", "exclude": ["image"]},
        {"threshold": 0.5, "exclude": ["text", "fusion"]},
        OFF,
    ],
    "block_rms": [
        {},
        {"threshold": 0.1, "per": "unit"},
        {"threshold": 0.3, "per": "modality"},
        {"threshold": 0.3, "per": "global"},
        OFF,
    ],
    "autoclip": [
        {},
        {"threshold": 60.0, "window": 3},
        {"threshold": 33.0, "per": "modality", "window": 3, "p": 1.0},
        {"threshold": 95.0, "per": "tensor", "window": 3},
        {"threshold": 25.0, "per": "tensor", "p": INF},
        {"threshold": 50.0, "p": 3.5, "window": 2},
        OFF,
    ],
    "zclip": [
        {},
        {"warmup_steps": 2},
        {"warmup_steps": 2, "response": "mean", "threshold": 1.0, "per": "modality"},
        {"warmup_steps": 2, "response": "percentile", "threshold": 0.5, "per": "tensor"},
        {"warmup_steps": 2, "beta": 0.5, "eps": 0.1, "p": 1.0},
        {"warmup_steps": 1, "sd_floor": 0.25, "p": INF, "per": "tensor"},
        {"warmup_steps": 2, "sd_floor": 2.0, "response": "percentile", "p": 3.5},
        {"warmup_steps": 2, "threshold": INF},
    ],
    "quantile": [
        {},
        {"initial": 1.0, "rate": 1.5},
        {"threshold": 0.9, "initial": 5.0, "per": "modality", "rate": 2.0},
        {"threshold": 0.1, "per": "tensor", "p": 1.0, "rate": 0.7},
        {"initial": 1.0, "per": "unit", "p": INF},
        {"initial": 1.0, "lowest": 0.9, "rate": 3.0, "p": 3.5},
        OFF,
    ],
    "ema": [
        {},
        {"threshold": 1.1, "beta": 0.5},
        {"initial": 0.5, "per": "modality", "beta": 0.9},
        {"threshold": 2.0, "per": "tensor", "p": 1.0},
        {"threshold": 0.5, "per": "unit", "p": INF, "initial": 3.0},
        {"p": 3.5, "beta": 0.0},
        OFF,
    ],
    "adagc": [
        {},
        {"warmup_steps": 2},
        {"warmup_steps": 2, "per": "global", "threshold": 1.5},
        {"warmup_steps": 2, "per": "modality", "beta": 0.5},
        {"warmup_steps": 0, "threshold": 1.2},
        {"warmup_steps": 3, "absolute": 0.05},
        {"warmup_steps": 1, "absolute": INF},
        {"warmup_steps": 2, "threshold": INF},
    ],
    "skip": [
        {},
        {"window": 4, "threshold": 1.0},
        {"window": 4, "threshold": 0.1, "per": "modality"},
        {"window": 2, "threshold": 3.0, "p": 1.0},
        {"window": 5, "threshold": 2.0, "p": INF, "per": "modality"},
        {"window": 6, "threshold": 0.5, "p": 3.5},
        {"window": 4, "threshold": INF},
    ],
    "spike": [
        {},
        {"warmup_steps": 1},
        {"warmup_steps": 2, "threshold": 50.0, "beta": 0.9},
        {"warmup_steps": 0, "threshold": 2.0, "beta": 0.5},
        {"warmup_steps": 1, "threshold": INF},
    ],
    "adaclip": [
        {},
        {"threshold": 0.5},
        {"threshold": 0.9, "beta": 0.5},
        {"threshold": 2.0, "beta": 0.9},
        {"threshold": 0.3, "beta": 0.0},
        OFF,
    ],
    "adagn": [
        {},
        {"threshold": 0.3},
        {"beta1": 0.0, "beta2": 0.99},
        {"eps": 0.5, "threshold": 2.0},
        OFF,
    ],
    "coordinate": [
        {},
        {"threshold": 0.5, "alpha": 2.0},
        {"threshold": 0.3, "alpha": 1.5, "beta2": 0.9},
        {"beta1": 0.0, "beta2": 0.0, "eps": 0.1},
        OFF,
    ],
    "clip21": [
        {},
        {"threshold": 10.0, "per": "modality"},
        {"threshold": 0.1, "per": "tensor"},
        OFF,
    ],
    "centralize": [{}],
    "noise": [{}, {"threshold": 1.0, "decay": 0.0}, {"threshold": 4.0, "decay": 2.0}, OFF],
    "chain": [
        {},
        {"threshold": 0.3, "laws": ["agc_0.1", "norm"]},
        {"threshold": 2.0, "laws": ["norm_0.5", "ema", "smooth"]},
        {"threshold": 0.2, "laws": ["value_0.5", "clip21_3", "agc"]},
        {"threshold": 1.2, "laws": ["centralize", "ema"]},
        {"threshold": INF, "laws": ["norm_0.5", "value"]},
    ],
}
# A law may not have all its knobs yet: what is left out here makes test_the_table_is_complete fail.
SETTINGS = [
    (option, variant)
    for option in OPTIONS
    for variant in VARIANTS.get(option, [{}])
    if set(variant) <= set(config(option))
]
