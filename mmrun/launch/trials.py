"""The trials of a study: chosen, reported, judged and ended by Optuna; the only module that imports it.

They are kept in Optuna's journal beside sweep.json, whose lock is held meanwhile. Every step is one line there: a trial with
its values and points, a value of the metric, an ending. So a kill loses at most the line that it tears, which did not happen then.
What is chosen follows from the sampler's seed, the trial's number and the trials before it: a study that was interrupted
chooses as one that was not.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from mmrun.compose.interval import Interval
from mmrun.compose.space import Dimension, Value
from mmrun.errors import UserError
from mmrun.runs.study import BASE, METRIC, REASON

Sampler = Literal["tpe", "random"]
Pruner = Literal["none", "median", "asha"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How trials are chosen and judged; see conf/sweeper/optuna.yaml."""

    sampler: Sampler
    seed: int
    pruner: Pruner
    startup: int
    warmup: int
    reduction: int


class Trials:
    """The trials in a journal.

    Args:
        path: the file; made where there is none.
        name: of a new study.
        metric: what a trial's value is.
        maximize: whether more of it is better.
        base: hash of what all trials share.
        dimensions: {key: what it spans}.
        rules: how they are chosen and judged.

    Raises:
        UserError: the file cannot be read, or its trials are of another question.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        metric: str,
        maximize: bool,
        base: str,
        dimensions: Mapping[str, Dimension],
        rules: Rules,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.rules = rules
        self.dimensions = dimensions
        self.direction: Literal["maximize", "minimize"] = "maximize" if maximize else "minimize"
        self._distributions = {key: _distribution(each) for key, each in dimensions.items()}
        self._study = self._open(path, name)
        problem, given = self._other(metric, base)
        if problem and not any(each.values or each.intermediate_values for each in self.all()):
            path.unlink()  # nothing was learnt yet: say, a metric that there is not
            self._study, problem = self._open(path, name), ""
        if problem:
            raise UserError(problem, given=given, remedy="Name another sweep: sweep=NAME.")
        for key, value in ((METRIC, metric), (BASE, base)):
            if key not in self._study.user_attrs:
                self._study.set_user_attr(key, value)

    def _open(self, path: Path, name: str) -> optuna.Study:
        try:
            mend(path)
            storage = JournalStorage(JournalFileBackend(str(path), cast("Any", _Held())))
            names = optuna.get_all_study_names(storage)
            # The sampler of each trial is its own, see ``choose``.
            keep = {"sampler": optuna.samplers.RandomSampler(), "pruner": _pruner(self.rules)}
            if names:
                return optuna.load_study(study_name=names[0], storage=storage, **keep)
            return optuna.create_study(
                study_name=name, storage=storage, direction=self.direction, **keep
            )
        except OSError as error:
            raise UserError(
                f"the study cannot be written: {error.strerror or error}",
                given=path,
                remedy="Make room, or name another folder with outputs=DIR.",
            ) from error
        except (ValueError, KeyError, AssertionError, TypeError) as error:
            raise UserError(
                "this study cannot be read",
                given=path,
                remedy="Move it away: the same command begins a new one, and takes the points that are there.",
            ) from error

    def _other(self, metric: str, base: str) -> tuple[str, str]:
        """What is asked that the study does not, and its words; empty for one that asks the same, or is new."""
        known = self._study.user_attrs
        way = self._study.direction.name.lower()
        if known.get(METRIC, metric) != metric:
            return f"this study is of {known[METRIC]}", metric
        if way != self.direction:
            return f"this study is to {way} {metric}", self.direction
        if known.get(BASE, base) != base:
            return "the trials of this study share another config, or span other keys", ""
        for trial in self.all():
            for key, distribution in self._distributions.items():
                try:
                    check_distribution_compatibility(trial.distributions[key], distribution)
                except (KeyError, ValueError):
                    return f"this study spans other values of {key}", _typed(distribution)
        return "", ""

    def all(self) -> list[FrozenTrial]:
        """Every trial, by its number; not to be changed."""
        return self._study.get_trials(deepcopy=False)

    def choose(self) -> dict[str, Value]:
        """Values for the next trial, rounded to what is trained. Writes nothing."""
        trials = self.all()
        seed = int(np.random.SeedSequence([self.rules.seed, len(trials)]).generate_state(1)[0])
        twin = optuna.create_study(direction=self.direction, sampler=_sampler(self.rules, seed))
        if self.rules.sampler != "random":
            twin.add_trials(trials)
        chosen = twin.ask(self._distributions).params
        return {key: _rounded(self.dimensions[key], value) for key, value in chosen.items()}

    def add(
        self, values: Mapping[str, Value], attributes: Mapping[str, Any], *, failed: bool = False
    ) -> int:
        """Write down a trial with these values, which runs from now on, or has failed; its number."""
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.FAIL if failed else TrialState.RUNNING,
                params=dict(values),
                distributions=self._distributions,
                user_attrs=dict(attributes),
            )
        )
        return len(self.all()) - 1

    def report(self, number: int, step: int, value: float) -> bool:
        """Write down a value of the metric on the way; whether the trial is to be pruned."""
        trial = optuna.trial.Trial(self._study, self.all()[number]._trial_id)
        trial.report(value, step)
        worse = trial.should_prune()  # always asked: asha keeps its rungs by it
        complete = sum(each.state == TrialState.COMPLETE for each in self.all())
        return worse and complete >= self.rules.startup

    def complete(self, number: int, value: float) -> None:
        """The trial has come to its end."""
        self._study.tell(number, value)

    def prune(self, number: int) -> None:
        """The trial was ended early."""
        self._study.tell(number, state=TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """The trial has no value, and why."""
        trial = optuna.trial.Trial(self._study, self.all()[number]._trial_id)
        trial.set_user_attr(REASON, reason)
        self._study.tell(number, state=TrialState.FAIL)


class _Held:
    """In the place of a lock of the journal: the sweep's own is held, and none is left behind by a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def mend(path: Path) -> None:
    """Cut off a last line that was torn: appended to, it would spoil the file."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        start = data.rfind(b"\n", 0, max(end - 1, 0)) + 1
        try:
            json.loads(data[start:end] or b"0")
        except ValueError:  # say, a disk that lost power in the middle of a line
            end = start
        if end < len(data):
            file.truncate(end)
            file.flush()
            os.fsync(file.fileno())


def _sampler(rules: Rules, seed: int) -> optuna.samplers.BaseSampler:
    if rules.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():  # both are settled in Optuna 5, and new in 4
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _pruner(rules: Rules) -> optuna.pruners.BasePruner:
    if rules.pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=rules.warmup)
    if rules.pruner == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=max(rules.warmup, 1), reduction_factor=rules.reduction
        )
    return optuna.pruners.NopPruner()


def _distribution(dimension: Dimension) -> BaseDistribution:
    if not isinstance(dimension, Interval):
        return CategoricalDistribution(dimension.values)
    low, high, log = dimension.low, dimension.high, dimension.log
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=log, step=int(dimension.step or 1))
    return FloatDistribution(low, high, log=log, step=dimension.step)


def _rounded(dimension: Dimension, value: Any) -> Value:
    return dimension.rounded(value) if isinstance(dimension, Interval) else str(value)


def _typed(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(map(str, distribution.choices))
    return str(distribution)
