"""``clip.calibrate_from=RUN``: which number is p90 of the gradient norms that RUN recorded?

Asked before the point's id is made, so that its id is that of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

from mmrun.errors import UserError, nearest
from mmrun.sources import percentile
from mmrun.spec import RESERVED_SCOPES, SHARED

WIDEST = 100  # p99 over p50 of the norms: beyond it no percentile stands for them
GRADIENT, UPDATE = "grad/norm", "update/norm"


class Norms(NamedTuple):
    """What a run recorded in gradients.csv."""

    run: str
    columns: Mapping[str, Any]  # {name: float64 values}
    config: Mapping[str, Any]

    @property
    def scopes(self) -> list[str]:
        """The scopes of parameters that it had."""
        start = f"{GRADIENT}/"
        return [name.removeprefix(start) for name in self.columns if name.startswith(start)]


class RecordedNorms:
    """The norms of runs, each found and read once: ``last`` is one run for all points of a sweep.

    Attributes:
        idle: the complaint of a point that names a run and has no percentile to find in it.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Norms] = {}
        self.idle: UserError | None = None

    def check_used(self) -> None:
        """Raise UserError where a run was named and no point had a use for it; in a sweep some may have none."""
        if self.idle is not None and not self._known:
            raise self.idle

    def of(self, run: str, outputs: str) -> Norms:
        """The norms of the run that ``run`` names below ``outputs``.

        Raises:
            UserError: no such run, or one without norms.
        """
        if (run, outputs) not in self._known:
            from mmrun import runs  # what it imports takes 0.05 s, and few points are calibrated so

            directory = runs.find(run, Path(outputs))
            columns = runs.read_columns(runs.Paths(directory).gradients)
            if not len(columns.get(GRADIENT, ())):
                raise UserError(
                    f"{directory.name} has recorded no gradients",
                    given=f"clip.calibrate_from={run}",
                    remedy="Name a run that has trained.",
                )
            config = runs.read(directory)["config"]
            self._known[run, outputs] = Norms(directory.name, columns, config)
        return self._known[run, outputs]


class _Place(NamedTuple):
    """A threshold in words: whose it is, in which node, and the law that acts by it."""

    scope: str | None
    key: str
    node: dict[str, Any]
    law: Mapping[str, Any]


def calibrate(config: Mapping[str, Any], own: Mapping[str, Any], recorded: RecordedNorms) -> None:
    """Put numbers for the percentiles in a clip group, in place, and nothing for ``calibrate_from``.

    Where the law clips each modality by itself, every scope that RUN recorded is given a law of its own for that, a part
    such as the fusion only where RUN's is of the same class. Whatever else there is takes the largest of their numbers.

    Args:
        config: the point's; the words of its clip group are resolved.
        own: the law's knobs in that group.
        recorded: norms of runs.

    Raises:
        UserError: nothing to find, or a run that it cannot be found from.
    """
    clip, modalities = config["clip"], config["dataset"]["use"]
    run = clip["calibrate_from"]
    if isinstance(run, bool) or not isinstance(run, str | int):
        raise UserError(
            "clip.calibrate_from names a run",
            given=run,
            remedy='Write its path, name or id, or last; in a file one that looks like a number in quotes, "1e5".',
        )
    given = f"clip.calibrate_from={run}"
    places = list(_places(clip))
    if not places:
        recorded.idle = UserError(
            "there is no percentile to find in the run",
            given=given,
            remedy="Write one as the threshold, e.g. clip=p90 or clip.threshold=p90.",
        )
        clip["calibrate_from"] = None
        return
    for place in places:
        _check_law(place)
    norms = recorded.of(str(run), config["outputs"])
    theirs = sorted({*norms.scopes} - {*RESERVED_SCOPES})
    if theirs != sorted(modalities):
        raise UserError(
            f"{norms.run} has other modalities: {', '.join(theirs)}, here {', '.join(modalities)}",
            given=given,
            remedy="Name a run with the same.",
        )
    measure = UPDATE if clip["on"] == "update" else GRADIENT
    split: list[str] = []  # scopes that the point's own law is divided among
    if any(place.scope is None and place.law.get("per") == "modality" for place in places):
        split = [
            scope
            for scope in norms.scopes
            if scope not in clip["scopes"]
            and _any(norms, f"{measure}/{scope}")
            and _classes(config, scope) == _classes(norms.config, scope)
        ]
        clip["scopes"] |= {scope: deepcopy(dict(own)) for scope in split}
    for place in _places(clip):
        columns = [measure if place.scope is None else f"{measure}/{place.scope}"]
        if place.scope is None and place.law.get("per") == "modality" and split:
            columns = [f"{measure}/{scope}" for scope in split]
        word = place.node["threshold"]
        place.node["threshold"] = max(_number(norms, each, word, given) for each in columns)
    clip["calibrate_from"] = None


def _classes(config: Mapping[str, Any], scope: str) -> Any:
    """What a scope that is no modality is made of: another class may have no parameters, and so no such scope."""
    if scope not in RESERVED_SCOPES:
        return None
    if scope == SHARED:  # what several parts hold
        return {name: node.get("_target_") for name, node in config.get("encoder", {}).items()}
    return config.get(scope, {}).get("_target_")  # of a record that cannot be read there is nothing


def _places(clip: dict[str, Any]) -> Iterator[_Place]:
    own: dict[str | None, dict[str, Any]] = {None: clip}
    for scope, node in (own | clip["scopes"]).items():
        key = "clip" if scope is None else f"clip.scopes.{scope}"
        links = node.get("laws") or []
        found = [_Place(scope, f"{key}.laws[{k}]", link, link) for k, link in enumerate(links)]
        found.append(_Place(scope, key, node, links[-1] if links else node))
        yield from (each for each in found if percentile(each.node.get("threshold")) is not None)


def _check_law(place: _Place) -> None:
    """Norms are divided among units by laws with a budget alone: the thresholds of the others are no norms."""
    given = f"{place.key}.threshold={place.node['threshold']}"
    if "budget" not in place.law:
        raise UserError(
            "the threshold of this law is no gradient norm, so no run has recorded its percentiles",
            given=given,
            remedy="Give a number, or take a law whose threshold is one, e.g. clip=p90.",
        )
    if place.law.get("p", 2) != 2:
        raise UserError(
            f"a run records norms of order 2, and this law has p={place.law['p']}",
            given=given,
            remedy="Leave clip.calibrate_from out, and it is found before the training starts.",
        )


def _any(norms: Norms, column: str) -> bool:
    return column in norms.columns and bool((norms.columns[column] > 0).any())


def _number(norms: Norms, column: str, word: str, given: str) -> float:
    """The percentile of a column, of its finite values, to six digits."""
    import numpy as np

    if column not in norms.columns:
        untold = column.startswith(UPDATE) and UPDATE not in norms.columns
        raise UserError(
            f"{norms.run} has not recorded {column}",
            given=given,
            remedy="Name a run that was trained with clip.on=update."
            if untold
            else nearest(column, norms.columns),
        )
    values = norms.columns[column]
    finite = values[np.isfinite(values)]
    if not (finite > 0).any():
        raise UserError(
            f"{norms.run} has no {column} above 0", given=given, remedy="Give a number, or none."
        )
    wanted, middle, high = np.percentile(finite, [percentile(word) or 0.0, 50, 99])
    if high > WIDEST * middle:
        raise UserError(
            f"{column} of {norms.run} is spread too wide for a percentile to stand for it: "
            f"p99 is {high:.3g}, p50 {middle:.3g}",
            given=given,
            remedy="Give a number.",
        )
    if not wanted > 0:
        raise UserError(
            f"{word} of {column} in {norms.run} is 0", given=given, remedy="Take a higher one."
        )
    return float(f"{wanted:.6g}")
