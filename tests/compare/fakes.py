"""Run directories with the run.json of real ones and made-up scores."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmrun.runs.record import blank
from mmrun.spec import config_id

# What a training of digits3 recorded, shortened where nothing looks.
CONFIG: dict[str, Any] = {
    "seed": 0,
    "data_seed": 0,
    "threads": 1,
    "outputs": "outputs",
    "name": None,
    "dataset": {
        "_target_": "mmrun.datasets.digits3.Digits3",
        "batch_size": 64,
        "use": ["image", "audio", "text"],
        "label_noise": 0.0,
    },
    "objective": {
        "_target_": "mmrun.objectives.classification.Classification",
        "hidden": [],
        "label_smoothing": 0.1,
    },
    "encoder": {
        name: {"_target_": f"mmrun.encoders.{kind}", "dim": 32, "kernel": 5, "dropout": 0.4}
        for name, kind in (("image", "cnn.CNN"), ("audio", "conv.Conv"), ("text", "conv.Conv"))
    },
    "fusion": {"_target_": "mmrun.fusion.concat.Concat", "dim": 64},
    "optimizer": {
        "_target_": "torch.optim.AdamW",
        "lr": 0.003,
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
        "scopes": {},
    },
    "schedule": {"_target_": "mmrun.schedules.constant"},
    "clip": {"_target_": "mmrun.clip.none.Unclipped", "record_every": 1},
    "balance": {"_target_": "mmrun.balance.none.NoBalance"},
    "missing": {"_target_": "mmrun.missing.none.NoFill", "train_rate": 0.0, "test_rate": 0.0},
    "trainer": {
        "accelerator": "auto",
        "devices": 1,
        "enable_progress_bar": True,
        "max_epochs": 5,
        "limit_train_batches": 1.0,
        "checkpoint": "best",
    },
    "logger": {"mode": "none"},
}
CHOICES = {
    "balance": "none",
    "clip": "none",
    "dataset": "digits3",
    "encoder/audio": "conv",
    "encoder/image": "cnn",
    "encoder/text": "conv",
    "fusion": "concat",
    "logger": "none",
    "missing": "none",
    "objective": "classification",
    "optimizer": "adamw",
    "schedule": "constant",
    "trainer": "default",
}
# What choosing an option makes of its group's config.
OPTIONS: dict[str, dict[str, Any]] = {
    "optimizer=momentum": {
        "_target_": "torch.optim.SGD",
        "lr": 0.1,
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.0,
        "scopes": {},
    },
    "fusion=attention": {"_target_": "mmrun.fusion.attention.Attention", "dim": 64, "heads": 4},
    "fusion=sum": {"_target_": "mmrun.fusion.sum.Sum", "dim": 64},
    "encoder/text=lstm": {"_target_": "mmrun.encoders.lstm.LSTM", "dim": 64, "layers": 1},
}


def config_of(*overrides: str) -> tuple[dict[str, Any], dict[str, str]]:
    """(config, choices) as composing would give them, for the options above and any clip."""
    config, choices = deepcopy(CONFIG), dict(CHOICES)
    for override in overrides:
        key, _, text = override.partition("=")
        node: Any = config
        if key in choices:
            *path, leaf = key.split("/")
            for part in path:
                node = node[part]
            choices[key] = text
            if key == "clip" and text != "none":
                law, _, number = text.rpartition("_")
                node[leaf] = {
                    "_target_": f"mmrun.clip.{law or 'norm'}.Law",
                    "threshold": float(number),
                    "per": "global",
                    "record_every": 1,
                }
            elif override in OPTIONS:
                node[leaf] = deepcopy(OPTIONS[override])
            continue
        *path, leaf = key.split(".")
        for part in path:
            node = node[part]
        node[leaf] = json.loads(text)
    config["data_seed"] = config["seed"]
    return config, choices


def fake(
    directory: Path,
    *overrides: str,
    val: float | None = 0.9,
    tested: float | None = None,
    last: float | None = None,
    status: str = "finished",
    stability: str | None = None,
    **keys: Any,
) -> dict[str, Any]:
    """Write a run directory; its record.

    Args:
        directory: where.
        overrides: as one would type them; see ``config_of``.
        val: best accuracy on validation; tested and last follow it where they are not given.
        tested: accuracy on test at the best checkpoint.
        last: the same at the last step.
        status: status; without scores unless finished or diverged.
        stability: its stability; diverged or ok by default.
        keys: other keys of run.json.
    """
    config, choices = config_of(*overrides)
    record = blank() | {
        "id": config_id(config),
        "name": ",".join(overrides) or "run",
        "status": status,
        "seed": config["seed"],
        "data_seed": config["data_seed"],
        "choices": choices,
        "overrides": list(overrides),
        "config": config,
        "started": "2026-11-21T10:00:00.000+00:00",
    }
    if status in ("finished", "diverged"):
        tested = val if tested is None else tested
        last = tested if last is None else last
        record |= {
            "stability": stability or ("diverged" if status == "diverged" else "ok"),
            "test": {"test/loss": 0.3, "test/accuracy": tested, "test/f1_macro": tested},
            "test_last": {"test_last/loss": 0.4, "test_last/accuracy": last},
            "train_eval": {"train_eval/loss": 0.1, "train_eval/accuracy": 0.99},
            "metrics": {
                "train/loss": {"last": 0.2, "min": 0.2, "max": 2.3, "best_step": 80},
                "val/loss": {"last": 0.5, "min": 0.4, "max": 2.0, "best_step": 80},
                "val/accuracy": {"last": 0.1, "min": 0.05, "max": val, "best_step": 80},
            },
            "monitor": {"metric": "val/loss", "mode": "min", "value": 0.4, "best_step": 80},
        }
    record |= keys
    directory.mkdir(parents=True)
    (directory / "run.json").write_text(json.dumps(record, indent=1))
    return record


def fake_many(outputs: Path, n: int, *, seeds: int) -> None:
    """``n`` run directories: learning rates by thresholds by seeds, each with the blocks of a real run."""
    clip = {
        "algorithm": "norm",
        "threshold": 0.5,
        "verdict": "norm 0.5 clipped 75 % of steps, median coefficient 0.31",
        "scopes": {
            scope: {
                "norm": {"p50": 0.21, "p90": 0.42, "p99": 0.63},
                "fraction": 0.75,
                "share": 0.2,
                "payer": 0.9,
            }
            for scope in ("image", "audio", "text", "fusion", "objective")
        },
    }
    versions = dict.fromkeys(("python", "mmrun", "torch", "numpy", "wandb", "hydra"), "1.2.3")
    for k in range(n):
        setting, seed = divmod(k, seeds)
        fake(
            outputs / "sweep" / f"point{k:05}",
            f"optimizer.lr={0.001 * (1 + setting // 10):.3g}",
            f"clip={0.1 * (1 + setting % 10):.3g}",
            f"seed={seed}",
            val=0.5 + 0.0002 * (k % 1999),
            clip=clip,
            versions=versions,
            host="laptop",
            git={"commit": "7ad071c000000000000000000000000000000000", "dirty": True},
        )
