"""The plain facts that modules agree on: a point of a sweep, a dataset's modalities. No torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Kind = Literal["image", "spectrogram", "waveform", "text", "sequence", "vector", "frames"]
KINDS: tuple[str, ...] = get_args(Kind)

# Scopes of parameters beside the modalities; no modality may take one of these names.
FUSION, OBJECTIVE, MISSING, SHARED = "fusion", "objective", "missing", "shared"
RESERVED_SCOPES = (FUSION, OBJECTIVE, MISSING, SHARED)
MODALITY_NAME = re.compile(r"[a-z][a-z0-9_]*")

# Config keys that do not change what is learnt: where things go, who runs them, how they are shown.
NOT_IN_ID = (
    *("outputs", "name", "sweep", "logger", "launcher", "sweeper", "profile"),
    "diagnostics",  # they measure a training and change none of its numbers
)
NOT_IN_ID_TRAINER = ("accelerator", "devices", "num_nodes")
NOT_IN_ID_TRAINER_PREFIX = "enable_"
# Settings of which 1 is one batch and 1.0 all of them.
SHARE_OR_COUNT = ("limit_", "val_check_interval")


@dataclass(frozen=True, kw_only=True)
class ModalitySpec:
    """What one modality looks like to an encoder: its kind and the shape of one sample.

    Shapes by kind: image [C, H, W], spectrogram [F, T], waveform [T], text [T] (ids),
    sequence [T, F], vector [F], frames [T, C, H, W].

    Args:
        name: the modality's name, ``[a-z][a-z0-9_]*``, none of the reserved scopes.
        kind: one of ``KINDS``.
        shape: shape of one sample, without the batch.
        vocabulary: number of ids of a text modality (id 0 is padding); 0 for every other kind.
        padded: whether batches carry a mask [B, T] for this modality.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    vocabulary: int = 0
    padded: bool = False


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a dataset offers: its modalities in order, and its target.

    Args:
        modalities: {name: ModalitySpec}, in the dataset's order.
        target: "class" (int64 [B]), "value" (float32 [B, D]) or "none".
        classes: number of classes; 0 unless the target is a class.
        class_counts: training samples per class; empty unless the target is a class.
        class_names: names of the classes, for tables and predictions; may be empty.
        target_shape: shape of one target value; () for a class.
        sizes: {"train": n, "val": n, "test": n} samples per split.
    """

    modalities: Mapping[str, ModalitySpec]
    target: Literal["class", "value", "none"]
    classes: int = 0
    class_counts: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    target_shape: tuple[int, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training: a resolved config and how the user asked for it.

    Args:
        config: plain, fully resolved dict; everything that changes numbers is in it.
        choices: {group: option}, encoders as ``encoder/<modality>``, clip as one would type it.
        overrides: the user's own overrides, in the order given.
        name: a short human name, unique within its sweep; nobody parses it.
        config_dirs: the user's own config folders (``--config-dir``), absolute.
    """

    config: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...] = ()
    name: str = ""
    config_dirs: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Hash of what decides the numbers: twelve hex digits, equal for equal trainings."""
        return config_id(self.config)


# Words of a command line that make a sweep of it, and are no settings.
MULTIRUN = ("-m", "--multirun")
SWEEP_WORDS = ("seeds", "rerun", "sweep")
SWEEPER = "sweeper"  # the group of who makes the points of a sweep: every combination, or what Optuna chooses
Rerun = Literal["false", "stale", "true"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Points that belong together, as a command line stands for them.

    Args:
        name: of its folder below ``outputs``.
        points: in the order in which they are to be trained; their ids differ.
        axes: {key: values as typed} of what varies.
        overrides: the user's own words, without ``-m``.
        config_dirs: the user's own config folders, absolute.
        rerun: which finished points are made again: none, those of another version or commit, all.
        repeated: names of points that were left out, since another one is equal to them.
        idle: keys in which those differ that leave what is learnt as it is.
    """

    name: str
    points: tuple[Point, ...]
    axes: Mapping[str, tuple[str, ...]]
    overrides: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()
    rerun: Rerun = "false"
    repeated: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()


def config_id(config: Mapping[str, Any]) -> str:
    """Hash of a resolved config without the keys that do not change what is learnt."""
    kept = {key: value for key, value in config.items() if key not in NOT_IN_ID}
    trainer = kept.get("trainer")
    if isinstance(trainer, Mapping):
        kept["trainer"] = {
            key: value
            for key, value in trainer.items()  # pyright: ignore[reportUnknownVariableType]
            if key not in NOT_IN_ID_TRAINER and not str(key).startswith(NOT_IN_ID_TRAINER_PREFIX)  # pyright: ignore[reportUnknownArgumentType]
        }
    text = json.dumps(_canonical(kept), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def outside_id(key: str) -> bool:
    """Whether a setting, by its dotted key, leaves the numbers, and so the id, what they are."""
    head, _, leaf = key.partition(".")
    if head == "trainer":
        return leaf in NOT_IN_ID_TRAINER or leaf.startswith(NOT_IN_ID_TRAINER_PREFIX)
    return head in NOT_IN_ID


def _canonical(value: Any, key: str = "") -> Any:
    """1.0 as 1, so that one setting has one id; but where 1 is a number of batches and 1.0 all of them."""
    if isinstance(value, Mapping):
        items = value.items()  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        return {str(k): _canonical(v, str(k)) for k, v in items}  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_canonical(each, key) for each in value]  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, float) and value.is_integer() and not key.startswith(SHARE_OR_COUNT):
        return int(value)
    return value


def law_of(target: str) -> str:
    """Name of a clip law from its class: ours is the file's, a user's the class in lower case.

    >>> law_of("mmrun.clip.block_rms.BlockRMS"), law_of("mine.laws.Halve")
    ('block_rms', 'halve')
    """
    module, _, name = target.rpartition(".")
    return module.rpartition(".")[2] if module.startswith("mmrun.") else name.lower()
