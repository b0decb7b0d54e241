"""Points chosen on the way: which trial next, what became of it, which is not worth going on with?

A trial is a value of every dimension of a space; its points are those of the sweep's seeds, its value the mean over them of the
metric's best value on validation. A free slot gets the next point of a trial that is under way, else a new trial at once. What
became of a point its run.json says, what became of a trial the journal (``trials``): after a kill a trial that was under way is
taken up with its points, whatever state they are in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrun.compose.space import Space, Value
from mmrun.errors import UserError
from mmrun.launch import study_report
from mmrun.launch.curves import VAL, Curve, value_of, without_value
from mmrun.launch.plan import TO_DO, Planned, found_at, plan, present, slim
from mmrun.launch.source import Source
from mmrun.runs.better import higher
from mmrun.runs.layout import STUDY, Paths
from mmrun.runs.study import AGAIN, POINTS, REASON, SEEDS, read_study
from mmrun.runs.writer import freeze
from mmrun.spec import SWEEPER, Point

if TYPE_CHECKING:
    from mmrun.launch.trials import Trials

HOPELESS = 10  # trials that fail, and none that does not: then no other is begun
LEFT = (*TO_DO, "wait")  # what is to happen to a point that has no result
OPEN = ("queued", "running", "cancelled")  # what says nothing of a trial
TRY_AGAIN = ("failed", "killed")  # first words of reasons that another attempt may not meet


@dataclass
class Trial:
    """A trial under way.

    Args:
        number: its own.
        planned: its points, by their ids, in the order of their seeds.
        waiting: those that were not given yet.
        records: of those that have ended.
        reported: validations that the journal has a value of.
    """

    number: int
    planned: dict[str, Planned]
    waiting: deque[Planned]
    records: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    reported: int = 0
    pruned: bool = False


class Study(Source):
    """Trials chosen by Optuna, their points given one by one.

    Args:
        sampler: who chooses.
        trials: how many, those of earlier commands counted; one that is tried again counts once.
        metric: of validation.
        direction: of the metric; auto goes by its name.
        seed: of the sampler.
        pruner: what ends trials early.
        startup: trials that have to be complete before one is pruned.
        warmup: validations before a trial can be pruned; the first rung of asha.
        reduction: of asha: one in so many passes a rung.
    """

    def __init__(
        self,
        *,
        sampler: Literal["tpe", "random"],
        trials: int,
        metric: str,
        direction: Literal["auto", "minimize", "maximize"],
        seed: int,
        pruner: Literal["none", "median", "asha"],
        startup: int,
        warmup: int,
        reduction: int,
    ) -> None:
        try:
            from mmrun.launch import trials as journal
        except ImportError as error:
            raise UserError(
                "this sweeper needs Optuna",
                given=str(error),
                remedy="Install it: pip install 'mmrun[optuna]', or pip install optuna.",
            ) from error
        least = {"trials": (trials, 1), "seed": (seed, 0), "startup": (startup, 0)}
        least |= {"warmup": (warmup, 0), "reduction": (reduction, 2)}
        for knob, (value, smallest) in least.items():
            if value < smallest:
                raise UserError(f"{SWEEPER}.{knob} is {smallest} or more", given=value)
        self.metric = metric if "/" in metric else f"{VAL}{metric}"
        if not self.metric.startswith(VAL):
            raise UserError(
                "trials are chosen by validation alone",
                given=f"{SWEEPER}.metric={metric}",
                remedy=f"Say, {VAL}{metric.rpartition('/')[2]}.",
            )
        self.maximize = higher(self.metric) if direction == "auto" else direction == "maximize"
        self.rules = journal.Rules(
            sampler=sampler,
            seed=seed,
            pruner=pruner,
            startup=startup,
            warmup=warmup,
            reduction=reduction,
        )
        self._make = journal.Trials
        self.wanted = trials
        self.stopped = ""  # why no other trial is begun, in a sentence
        self.planned: dict[str, Planned] = {}  # of every trial, by id
        self.refused: dict[Path, str] = {}
        # Told of points before they are made.
        self.register: Callable[[Sequence[Planned]], None] = lambda _: None

    def open(self, space: Space, directory: Path, name: str) -> None:
        """Open the journal, and take up the trials that were under way.

        Args:
            space: what trials are chosen from.
            directory: the sweep's folder, whose lock is held.
            name: of the sweep.

        Raises:
            UserError: the journal is of another question, or the config of its trials has changed.
        """
        self.space, self.directory, self.name = space, directory, name
        self.trials: Trials = self._make(
            directory / STUDY,
            name=name,
            metric=self.metric,
            maximize=self.maximize,
            base=space.base,
            dimensions=space.dimensions,
            rules=self.rules,
        )
        self.live: dict[int, Trial] = {}
        self._given: set[str] = set()  # ids of points that were given and have not ended
        self._count = 0  # of points given
        self._over: dict[str, Mapping[str, Any]] = {}  # {id: record} of points that ended just now
        self._curves: dict[str, Curve] = {}
        self._failed: list[str] = []  # reasons of the trials of this command that failed
        self._good = 0  # trials of this command that did not
        self._found = present(directory)
        known = self.trials.all()
        replaced = {each.user_attrs[AGAIN] for each in known if AGAIN in each.user_attrs}
        self._retries = deque(
            each.number
            for each in known
            if each.state.name == "FAIL"
            and each.number not in replaced
            and str(each.user_attrs.get(REASON, "")).startswith(TRY_AGAIN)
        )
        self._counted = len(known) - len(replaced)
        for each in known:
            if each.state.name == "RUNNING":
                self._take_up(each.number)

    # What the loop asks

    @property
    def total(self) -> int:
        """Points given and to be given, as far as it can be said: trials that end early have fewer."""
        to_come = max(self.wanted - self._counted, 0) + len(self._retries)
        waiting = sum(len(each.waiting) for each in self.live.values())
        return self._count + waiting + to_come * len(self.space.seeds)

    @property
    def exhausted(self) -> bool:
        """Whether every trial was begun, and every point of them given."""
        return not self._more() and not any(each.waiting for each in self.live.values())

    def next(self) -> Planned | None:
        """The next point of the first trial that has one left, else the first of a new trial."""
        while True:
            for trial in list(self.live.values()):
                while trial.waiting:
                    planned = trial.waiting.popleft()
                    if planned.point.id in self._given:  # another trial's, too
                        continue
                    if self._frozen(trial, planned):
                        self._given.add(planned.point.id)
                        self._count += 1
                        return planned
            if not self._more():
                return None
            self._new_trial()

    def ended(self, planned: Planned, record: Mapping[str, Any]) -> None:
        """A point has ended: what it means for the trials that have it."""
        id = planned.point.id
        self._given.discard(id)
        record = slim(dict(record))
        if record["status"] not in OPEN:
            self._over[id] = record
        for trial in list(self.live.values()):
            if id in trial.planned:
                self._hear(trial, id, record)
        self._curves.pop(id, None)

    def rest(self) -> list[Planned]:
        """None: points are made when they are given. No other ones will come."""
        self.stopped = self.stopped or "cancelled"
        for trial in self.live.values():
            trial.waiting.clear()
        return []

    def watch(self, running: Sequence[Planned]) -> list[Planned]:
        """Take in the validations of the points that run; those of trials that are to be pruned."""
        pruned: list[Planned] = []
        ids = {each.point.id for each in running}
        for trial in list(self.live.values()):
            if not trial.pruned and not ids.isdisjoint(trial.planned) and self._report(trial):
                trial.pruned = True
                trial.waiting.clear()
        for each in running:
            having = [t for t in self.live.values() if each.point.id in t.planned]
            if having and all(trial.pruned for trial in having):
                pruned.append(each)
        return pruned

    def held(self, planned: Planned) -> None:
        """This point of a trial is under way already, and will not be given."""
        self._given.add(planned.point.id)
        self._count += 1

    @property
    def progress(self) -> tuple[int, int]:
        """(trials that have ended, trials in all)."""
        return self._counted - len(self.live), max(self.wanted, self._counted)

    @property
    def under_way(self) -> list[Planned]:
        """Points of trials under way that have a folder and no result."""
        waiting = (each for trial in self.live.values() for each in trial.waiting)
        return [each for each in waiting if each.record is not None]

    # Trials

    def _more(self) -> bool:
        return not self.stopped and (bool(self._retries) or self._counted < self.wanted)

    def _new_trial(self) -> None:
        """Write down a new trial, or a failed one anew, and what its points are."""
        again = self._retries.popleft() if self._retries else None
        if again is None:
            values = self.trials.choose()
            self._counted += 1
        else:
            values = dict(self.trials.all()[again].params)
        attributes: dict[str, Any] = {SEEDS: list(self.space.seeds)}
        if again is not None:
            attributes[AGAIN] = again
        try:
            points = self.space.points_of(values)
        except UserError as error:  # values that do not go together
            reason = f"refused: {error}"
            self.trials.add(values, attributes | {REASON: reason}, failed=True)
            self._lost(reason)
            return
        attributes[POINTS] = [point.id for point in points]
        self._enter(self.trials.add(values, attributes), points)

    def _take_up(self, number: int) -> None:
        """A trial that was under way when its driver ended."""
        trial = self.trials.all()[number]
        values: dict[str, Value] = dict(trial.params)
        points = self.space.points_of(values, trial.user_attrs.get(SEEDS))
        if [point.id for point in points] != trial.user_attrs.get(POINTS):
            raise UserError(
                f"what trial {number} chose means something else by now: the configs have changed",
                given=self.directory / STUDY,
                remedy="Take the change back, or begin another study: sweep=NAME.",
            )
        self._enter(number, points, reported=trial.last_step or 0)

    def _enter(self, number: int, points: Sequence[Point], reported: int = 0) -> None:
        planned = [self._plan(point) for point in points]
        trial = Trial(
            number=number,
            planned={each.point.id: each for each in planned},
            waiting=deque(each for each in planned if each.action in LEFT),
            reported=reported,
        )
        self.live[number] = trial
        self.planned |= trial.planned
        self.register(planned)
        for id, each in trial.planned.items():
            record = self._over.get(id) or (None if each.action in LEFT else each.record)
            if record is not None and number in self.live:
                self._hear(trial, id, record)

    def _plan(self, point: Point) -> Planned:
        known = self.planned.get(point.id)
        if known is None:
            return plan(self.directory, [point], "false", self._found)[0]
        there = known.directory.is_dir()
        copies = {point.id: [found_at(known.directory)]} if there else {}
        return plan(self.directory, [point], "false", copies)[0]

    def _frozen(self, trial: Trial, planned: Planned) -> bool:
        """Whether the point has a folder now; where it can have none, its trial fails."""
        try:
            freeze(planned.point, planned.directory, sweep=self.name)
        except UserError as error:
            self.refused[planned.directory] = str(error)
            self._fail(trial, f"refused: {error}")
            return False
        return True

    def _hear(self, trial: Trial, id: str, record: Mapping[str, Any]) -> None:
        """What the ending of a point means for a trial."""
        if record["status"] in OPEN:
            return
        trial.records[id] = record
        if record["status"] == "pruned":
            trial.pruned = True
        else:
            reason = without_value(record, self.metric, maximize=self.maximize)
            if reason:
                self._fail(trial, reason)
                return
        done = len(trial.records) == len(trial.planned)
        while self._report(trial):
            trial.pruned = trial.pruned or not done  # with points left that are not worth it
            if not done:
                break
        if done and all(each["status"] != "pruned" for each in trial.records.values()):
            values = [
                value_of(each, self.metric, maximize=self.maximize)
                for each in trial.records.values()
            ]
            self.trials.complete(trial.number, sum(values) / len(values))
            self._leave(trial)
        elif trial.pruned:
            trial.waiting.clear()
            if self._given.isdisjoint(trial.planned):
                self.trials.prune(trial.number)
                self._leave(trial)

    def _leave(self, trial: Trial) -> None:
        self._good += 1
        del self.live[trial.number]

    def _fail(self, trial: Trial, reason: str) -> None:
        self.trials.fail(trial.number, reason)
        trial.waiting.clear()
        del self.live[trial.number]
        self._lost(reason)

    def _lost(self, reason: str) -> None:
        self._failed.append(reason)
        if not self._good and len(self._failed) >= HOPELESS and not self.stopped:
            self.stopped = f"no other trial is begun: all of the first {HOPELESS} failed"

    def _report(self, trial: Trial) -> bool:
        """Write down what is new of a trial's validations; whether it is to be pruned.

        A validation counts when all of its points that run have reached it.
        """
        curves = {
            id: self._curve(each)
            for id, each in trial.planned.items()
            if id in self._given or id in trial.records
        }
        while True:
            at = trial.reported
            reached = [curve[at] for curve in curves.values() if len(curve) > at]
            behind = any(len(curves[id]) <= at for id in self._given & curves.keys())
            if behind or not reached:
                return False
            trial.reported += 1
            mean = sum(reached) / len(reached)
            if math.isfinite(mean) and self.trials.report(trial.number, trial.reported, mean):
                return True

    def _curve(self, planned: Planned) -> Sequence[float]:
        path = Paths(planned.directory).metrics
        curve = self._curves.setdefault(planned.point.id, Curve(path, self.metric))
        return curve.values()

    # What a person is told

    def opening(self) -> list[str]:
        """What there is to do, and what of it is done."""
        return study_report.opening(
            read_study(self.directory),
            again=len(self._retries),
            to_come=max(self.wanted - self._counted, 0),
            seeds=len(self.space.seeds),
            sampler=self.rules.sampler,
        )

    def closing(self) -> list[str]:
        """How many trials came to what, and the best."""
        study = read_study(self.directory)
        return study_report.closing(study, self.folders(), self._failed, self.stopped)

    def folders(self) -> dict[str, Path]:
        """{id: folder} of the points of all trials that are there."""
        ids = (id for trial in self.trials.all() for id in trial.user_attrs.get(POINTS, ()))
        found = {id: copies[0][0] for id in ids if (copies := self._found.get(id))}
        for id, planned in self.planned.items():
            if planned.directory.is_dir():
                found[id] = planned.directory
        return found
