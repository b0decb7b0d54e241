"""The trials of a sweep whose sweeper chooses, as its study.journal has them: read without Optuna, whose file it is.

The file is Optuna's journal storage: one JSON object per line, ``op_code`` says what it does. A last line without its end was
torn by a kill, and did not happen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mmrun.errors import UserError
from mmrun.runs.layout import STUDY

# Optuna's JournalOperation.
CREATE_STUDY, STUDY_ATTR = 0, 2
CREATE_TRIAL, PARAM, STATE, INTERMEDIATE, ATTR = 4, 5, 6, 7, 8
STATES = ("running", "complete", "pruned", "failed", "waiting")  # Optuna's TrialState, in order
# Attributes that we give a study and its trials.
METRIC, BASE = "metric", "base"
POINTS, SEEDS, REASON, AGAIN = "points", "seeds", "reason", "again"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One choice of values.

    Args:
        number: from 0, in the order in which they were chosen.
        state: running, complete, pruned, failed; waiting is never written by us.
        params: {key: value} of what it chose.
        value: of the metric, over its seeds; None where it has none.
        intermediate: {validation, from 1: mean over the points that had reached it}.
        points: ids of its points, in the order of their seeds.
        reason: why it failed.
        again: number of the failed trial that it tries again.
        started: when, ISO 8601, UTC.
        ended: when.
    """

    number: int
    state: str
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    value: float | None = None
    intermediate: Mapping[int, float] = field(default_factory=dict[int, float])
    points: tuple[str, ...] = ()
    reason: str | None = None
    again: int | None = None
    started: str | None = None
    ended: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study.journal holds.

    Args:
        name: of the study.
        metric: full name, as in val/loss.
        maximize: whether more of it is better.
        trials: in the order of their numbers.
    """

    name: str
    metric: str
    maximize: bool
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the best value, the first of equals."""
        done = [each for each in self.trials if each.state == "complete" and each.value is not None]
        sign = -1.0 if self.maximize else 1.0
        return min(done, key=lambda each: sign * cast("float", each.value), default=None)


def read_study(sweep: Path) -> Study:
    """The study of a sweep's folder, also while it goes on.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = sweep / STUDY
    name, maximize = "", False
    attributes: dict[str, Any] = {}
    trials: list[dict[str, Any]] = []
    try:
        for line in path.read_bytes().split(b"\n")[:-1]:
            log: dict[str, Any] = json.loads(line)
            code = log["op_code"]
            if code == CREATE_STUDY:
                name, maximize = str(log["study_name"]), log["directions"][0] == 2
            elif code == STUDY_ATTR:
                attributes |= log["user_attr"]
            elif code == CREATE_TRIAL:
                trials.append(_created(log))
            elif code in (PARAM, STATE, INTERMEDIATE, ATTR):
                _applied(trials[int(log["trial_id"])], log)
    except OSError as error:
        raise UserError("there is no study", given=path, remedy=f"{error.strerror}.") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError("this study cannot be read", given=path, remedy=f"{error!r}.") from error
    return Study(
        name=name,
        metric=str(attributes.get(METRIC, "")),
        maximize=maximize,
        trials=tuple(_trial(number, each) for number, each in enumerate(trials)),
    )


def _created(log: dict[str, Any]) -> dict[str, Any]:
    distributions = {key: json.loads(each) for key, each in log.get("distributions", {}).items()}
    return {
        "state": log.get("state", 0),
        "value": log.get("value"),
        "params": {
            key: _external(value, distributions[key])
            for key, value in log.get("params", {}).items()
        },
        "attributes": dict(log.get("user_attrs", {})),
        "intermediate": dict(log.get("intermediate_values", {})),
        "started": log.get("datetime_start"),
        "ended": log.get("datetime_complete"),
    }


def _applied(trial: dict[str, Any], log: dict[str, Any]) -> None:
    """Let a line change what is known of a trial."""
    code = log["op_code"]
    if STATES[trial["state"]] not in ("running", "waiting"):
        return  # it has ended: Optuna ignores what comes later
    if code == PARAM:
        distribution = json.loads(log["distribution"])
        trial["params"][log["param_name"]] = _external(log["param_value_internal"], distribution)
    elif code == STATE:
        trial["state"] = log["state"]
        trial["value"] = (log.get("values") or [trial["value"]])[0]
        trial["ended"] = log.get("datetime_complete")
    elif code == INTERMEDIATE:
        trial["intermediate"][log["step"]] = log["intermediate_value"]
    else:
        trial["attributes"] |= log["user_attr"]


def _external(value: float, distribution: dict[str, Any]) -> Any:
    """A parameter as it was chosen: of a choice the file has its place."""
    attributes = distribution["attributes"]
    if "choices" in attributes:
        return attributes["choices"][int(value)]
    return int(value) if distribution["name"].startswith("Int") else float(value)


def _trial(number: int, made: dict[str, Any]) -> Trial:
    attributes: dict[str, Any] = made["attributes"]
    return Trial(
        number=number,
        state=STATES[int(made["state"])],
        params=made["params"],
        value=made["value"],
        intermediate={int(step): float(v) for step, v in made["intermediate"].items()},
        points=tuple(str(id) for id in attributes.get(POINTS, ())),
        reason=attributes.get(REASON),
        again=attributes.get(AGAIN),
        started=made["started"],
        ended=made["ended"],
    )
