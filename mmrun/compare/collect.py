"""Which runs are compared, and in which settings do they differ? run.json alone is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from mmrun.compare.laws import Law, name_laws, spelled
from mmrun.errors import UserError
from mmrun.options import ENCODER
from mmrun.runs.finder import find_tree
from mmrun.runs.reader import list_runs, read
from mmrun.runs.record import UNREADABLE
from mmrun.settings import changed
from mmrun.spec import SHARE_OR_COUNT, outside_id

ENDED = ("finished", "diverged")  # with scores: to diverge is a result
SEEDS = ("seed", "data_seed")
# Chosen by the dataset where the user says nothing, so that they follow from it.
_BY_DATASET = ("objective", ENCODER)


class Absent:
    """The value of a setting that a run does not have: one of an option that it did not choose."""

    def __str__(self) -> str:
        return "-"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()


@dataclass(frozen=True, eq=False)
class Row:
    """One run as it is compared.

    Args:
        directory: its directory.
        record: its run.json.
        config: its config, with what resuming changed.
    """

    directory: Path
    record: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def status(self) -> str:
        """queued, running, finished, ..., with whether its process lives taken into account."""
        return str(self.record["status"])

    def value(self, key: str) -> Any:
        """A setting: the option of a group, or what stands under a dotted key of the config."""
        choices = cast("dict[str, Any]", self.record["choices"])
        if key in choices:
            return choices[key]
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return ABSENT
            node = cast("dict[str, Any]", node)[part]
        return node


@dataclass(frozen=True)
class Collected:
    """The runs at some paths.

    Args:
        rows: one per run, repeats left out.
        unreadable: {directory: reason} of what could not be read.
        repeats: how many runs were left out because a newer one has the same config and seeds.
    """

    rows: tuple[Row, ...]
    unreadable: Mapping[Path, str]
    repeats: int = 0


def collect(words: Sequence[str], outputs: Path) -> Collected:
    """The runs that a user names; all of ``outputs`` where they name none.

    Two runs of one config and one seed are one measurement made twice: the newer one that came to
    an end counts, so that a repeat never makes a spread look small.

    Raises:
        UserError: a path names nothing, or there is no run at all.
    """
    roots = [find_tree(word, outputs) for word in words] or [outputs]
    paths = dict.fromkeys(run for root in roots for run in list_runs(root.absolute()))
    unreadable: dict[Path, str] = {}
    kept: dict[object, Row] = {}
    blocks: dict[object, Any] = {}
    for path in paths:
        record = read(path)
        if record["status"] == UNREADABLE:
            unreadable[path] = str(record["error"])
            continue
        row = Row(path, _slim(record), _shared(_resumed(record), blocks))
        same = (record["id"], _text(record["resumed"])) if record["id"] else path
        if same not in kept or _rank(row) >= _rank(kept[same]):
            kept[same] = row
    if not kept and not unreadable:
        raise UserError(
            "there are no runs to compare",
            given=", ".join(words) or outputs,
            remedy="Make one: mmrun train clip=0.5, and mmrun train clip=none",
        )
    clips = {id(row.config.get("clip")): row.config.get("clip") for row in kept.values()}
    name_laws(cast("dict[str, Any]", clip) for clip in clips.values() if isinstance(clip, dict))
    repeats = len(paths) - len(unreadable) - len(kept)
    return Collected(tuple(kept.values()), unreadable, repeats)


def differing(rows: Sequence[Row]) -> list[str]:
    """The settings in which these runs differ, the seeds left out: options first, then their knobs.

    A knob that only differs because another option was chosen is left out (momentum and threshold
    follow from ``optimizer=momentum`` and ``clip=0.5``); one that differs among runs of the same
    option is there, and so is one that somebody set by hand.
    """
    by_hand = {key for row in rows for key in _set_by_hand(row)}
    keys: list[str] = []
    for head in dict.fromkeys(key for row in rows for key in row.config):
        if outside_id(head) or head in SEEDS:
            continue
        nodes = [row.config.get(head, ABSENT) for row in rows]
        if head != ENCODER:
            keys += _in_group(head, head, rows, nodes, by_hand)
            continue
        parts: list[dict[str, Any]] = [node if isinstance(node, dict) else {} for node in nodes]
        for name in dict.fromkeys(name for part in parts for name in part):
            inner = [part.get(name, ABSENT) for part in parts]
            keys += _in_group(f"{head}/{name}", f"{head}.{name}", rows, inner, by_hand)
    return keys


def known_keys(rows: Sequence[Row]) -> set[str]:
    """Every setting of these runs that can be named: options of groups and knobs."""
    keys: set[str] = set()
    for row in rows:
        keys.update(row.record["choices"])
    for head in {key for row in rows for key in row.config}:
        for node in _distinct([row.config[head] for row in rows if head in row.config]):
            keys.update(_leaves(node, head))
    return {key for key in keys if not outside_id(key)}


def same_value(value: Any) -> object:
    """What two values share if they are the same setting: 1 and 1.0 do, 1 and true do not."""
    if isinstance(value, bool | str | Absent) or value is None:
        return (type(value), value)
    if isinstance(value, int | float):
        return value if value == value else "nan"
    return _text(value)


def said(value: Any) -> str:
    """A setting as one would type it."""
    return str(value) if isinstance(value, Absent) else spelled(value)


def _in_group(
    choice: str, prefix: str, rows: Sequence[Row], nodes: Sequence[Any], by_hand: set[str]
) -> list[str]:
    """Differing keys of one group; ``prefix`` is where its config stands."""
    leaves = [path for path in _differing(nodes, prefix) if not outside_id(path)]
    if not leaves:
        return []
    options = [row.record["choices"].get(choice) for row in rows]
    follows = choice.startswith(_BY_DATASET)
    above = [row.record["choices"].get("dataset") if follows else None for row in rows]
    shown: list[str] = []
    if len(set(options)) > 1 and (not follows or choice in by_hand or _varies(options, above)):
        shown.append(choice)
    parents = list(zip(options, above, strict=True))
    for leaf in leaves:
        values = [same_value(row.value(leaf)) for row in rows]
        typed = any(key == leaf or key.startswith(f"{leaf}.") for key in by_hand)
        if _varies(values, parents) or (typed and not _told(rows, choice, leaf)):
            shown.append(leaf)
    return shown


def _varies(values: Sequence[object], parents: Sequence[object]) -> bool:
    """Do values differ among runs of one parent?"""
    first: dict[object, object] = {}
    return any(first.setdefault(p, v) != v for p, v in zip(parents, values, strict=True))


def _told(rows: Sequence[Row], choice: str, leaf: str) -> bool:
    """Does the option's name say the threshold wherever there is one, as in clip=value_0.1?"""
    if not leaf.endswith(".threshold"):
        return False
    for row in rows:
        value = row.value(leaf)
        name = str(row.record["choices"].get(choice))
        if isinstance(value, int | float) and name.rpartition("_")[2] != f"{float(value):.15g}":
            return False
    return True


def _differing(nodes: Sequence[Any], path: str) -> Iterator[str]:
    """Dotted paths of the leaves in which nodes differ; equal branches are not entered, and a law is a leaf."""
    nodes = list({id(node): node for node in nodes}.values())  # equal blocks are one object
    first = nodes[0]
    if len(nodes) == 1:
        return
    # 1 and 1.0 are equal, and one batch is not all of them: there every leaf is looked at.
    counts = path == "trainer" or path.rpartition(".")[2].startswith(SHARE_OR_COUNT)
    if not counts and all(node == first for node in nodes):
        return
    if any(isinstance(node, Law) for node in nodes) or not any(isinstance(n, dict) for n in nodes):
        exact = {(counts and isinstance(node, float), same_value(node)) for node in nodes}
        if len(exact) > 1:
            yield path
        return
    mappings: list[dict[str, Any]] = [node if isinstance(node, dict) else {} for node in nodes]
    names = dict.fromkeys(name for mapping in mappings for name in mapping)
    for name in names:
        yield from _differing([mapping.get(name, ABSENT) for mapping in mappings], f"{path}.{name}")


def _leaves(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, Law):
        yield path
    if isinstance(node, dict) and node:
        for name, inner in cast("dict[str, Any]", node).items():
            yield from _leaves(inner, f"{path}.{name}")
    else:
        yield path


def _distinct(values: Sequence[Any]) -> list[Any]:
    kept: list[Any] = []
    for value in values:
        if value not in kept:
            kept.append(value)
    return kept


def _set_by_hand(row: Row) -> Iterator[str]:
    for override in row.record["overrides"]:
        yield str(override).lstrip("+~").partition("=")[0]
    yield from row.record["resumed"]


def _rank(row: Row) -> tuple[bool, str]:
    return (row.status in ENDED, str(row.record["started"] or ""))


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its largest blocks: two thousand of them are to stay in a small memory."""
    return {
        key: value for key, value in record.items() if key not in ("config", "clip", "versions")
    }


def _shared(config: dict[str, Any], blocks: dict[object, Any]) -> dict[str, Any]:
    """The config, with blocks that an earlier run had too replaced by those: one copy of each."""
    for head, node in config.items():
        if not isinstance(node, dict):
            continue
        last = blocks.get(head)
        # 1 and 1.0 are equal, and one batch is not all of them: there the text decides.
        if head == "trainer" or last != node:
            last = blocks[head] = blocks.setdefault((head, repr(cast("object", node))), node)
        config[head] = last
    return config


def _resumed(record: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = record["config"]
    if not record["resumed"]:
        return config
    try:
        return changed(config, record["resumed"])
    except UserError:  # a record from elsewhere; its config says what it can
        return config


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
