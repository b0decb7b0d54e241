"""The engine around a clip law: scopes of their own, schedule, floor, non-finite gradients, gradients or updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor
from torch.optim import Optimizer

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.bounded import Bounded
from mmrun.clip.carry import carried
from mmrun.clip.fitting import check
from mmrun.clip.floor import Floor
from mmrun.clip.law import Law, count, finite
from mmrun.clip.layout import Layout, Scopes
from mmrun.clip.none import Unclipped
from mmrun.clip.schedule import Schedule, factor, length
from mmrun.clip.skipping import Skipping, can_skip, skip_next
from mmrun.clip.sources import Clippable, scopes_of
from mmrun.clip.state import check_laws, check_state, has_learnt, state_of, take_up
from mmrun.clip.stats import Stats
from mmrun.clip.step import Gradients
from mmrun.clip.update import Update
from mmrun.clip.words import written
from mmrun.errors import UserError, nearest

Nonfinite = Literal["skip", "zero", "pass", "raise"]
On = Literal["gradient", "update"]


class Clipper:
    """A clip law at work in a training: once per optimizer step, on reduced and unscaled gradients.

    Args:
        law: for every scope that has none of its own.
        scopes: {scope: its own law}. A scope with a law of its own is no part of the others' global norm.
        floor: f > 0 raises a norm below it to it, at the law's granularity, after clipping; 0 does not.
        on: clip the ``gradient``; or the ``update`` that the optimizer makes of it, per unit of its learning rate
            (weight decay included): ``apply`` wants the optimizer then, or ``attach`` it before.
        warmup: steps at the start at which the threshold is infinite: measured and learnt from, not clipped.
        schedule: of the threshold, from its full size after the warm-up to ``schedule_end`` times that at the last step.
        schedule_end: the factor at the end; above 1 loosens.
        total_steps: optimizer steps of the training; for schedules.
        nonfinite: what becomes of a gradient with a NaN or an infinity in it: ``skip`` makes all of it 0 (and has a
            fused optimizer leave out the step), ``zero`` only the elements that are not finite, ``pass``
            leaves them; ``raise`` is skip for whoever trains to raise at the next log point. No law learns from it.
        max_nonfinite: such steps in a row that end a training as diverged.
        calibration_batches: batches that a percentile threshold is calibrated on.
        record_every: optimizer steps between two rows that a run records; every step is measured.

    Raises:
        UserError: a number out of range, or an option that does not exist.
    """

    def __init__(
        self,
        law: Law,
        *,
        scopes: Mapping[str, Law] | None = None,
        floor: float = 0.0,
        on: On = "gradient",
        warmup: int = 0,
        schedule: Schedule = "constant",
        schedule_end: float = 0.1,
        total_steps: int | None = None,
        nonfinite: Nonfinite = "skip",
        max_nonfinite: int = 10,
        calibration_batches: int = 16,
        record_every: int = 1,
    ) -> None:
        for key, value, known in (
            ("on", on, On),
            ("schedule", schedule, Schedule),
            ("nonfinite", nonfinite, Nonfinite),
        ):
            if value not in get_args(known):
                remedy = nearest(str(value), get_args(known))
                raise UserError(f"there is no such clip.{key}", given=value, remedy=remedy)
        self.law = law
        self.own = dict(scopes or {})
        self.floor = 0.0 if floor == 0 else finite("floor", floor)
        self.on: On = on
        check(self.laws, floor=self.floor, on_update=on == "update")
        self.warmup = count("warmup", warmup)
        self.schedule: Schedule = schedule
        self.schedule_end = finite("schedule_end", schedule_end)
        self.total_steps = length(schedule, total_steps)
        self.nonfinite: Nonfinite = nonfinite
        self.max_nonfinite = count("max_nonfinite", max_nonfinite, least=1)
        self.calibration_batches = count("calibration_batches", calibration_batches, least=1)
        self.record_every = count("record_every", record_every, least=1)
        self.steps = 0
        # With on="update": what became of the last step's update, once the optimizer has made it.
        self.updates: list[Stats] = []
        self._update: Update | None = None
        self._skipping: WeakKeyDictionary[Optimizer, Skipping] = WeakKeyDictionary()
        self._factor = 1.0
        self._measuring: list[tuple[Law, Floor | None]] = []
        self._layout: Layout | None = None
        self._parts: list[tuple[Law, Floor | None]] = []
        self._members: dict[tuple[int, ...], Tensor] = {}  # see Stats.merge
        self._optimizer: ref[Optimizer] | None = None  # whose updates are clipped
        self._waiting: Mapping[str, Any] | None = None  # a state, until there are parameters
        self._fresh = False  # how it is taken up

    def __repr__(self) -> str:
        return written(self, scopes=self.own)

    @property
    def algorithm(self) -> str:
        """The law's name."""
        return self.law.algorithm

    @property
    def threshold(self) -> float | str:
        """The law's number, as it was configured."""
        percentile = self.law.percentile
        return f"p{percentile:g}" if percentile else self.law.threshold

    @property
    def laws(self) -> dict[str, Law]:
        """{scope: its own law}, and the one of all others under ""."""
        return {"": self.law, **self.own}

    # Binding

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind to {scope: {parameter name: Parameter}}; afresh, but for a state that waits for it.

        Raises:
            UserError: a parameter is in two scopes, or a law is for a scope that there is not.
        """
        layout = Layout(scopes, anatomy)
        for scope in self.own:
            if scope not in scopes:
                raise UserError(
                    "clip.scopes names a scope that there is not",
                    given=f"clip.scopes.{scope}",
                    remedy=nearest(scope, scopes),
                )
        rest = {scope: named for scope, named in scopes.items() if scope not in self.own}
        bound = [(self.law, rest)] if rest or not self.own else []
        bound += [(law, {scope: scopes[scope]}) for scope, law in self.own.items()]
        self._end_update()
        self._layout = layout
        self._parts = []
        for law, its in bound:
            law.bind(its, anatomy)
            law.take_up_waiting()
            floor = self._floor(law)
            if floor is not None:
                floor.bind(its, anatomy)
            self._parts.append((law, floor))
        if self.on == "update":  # gradients are measured, whatever becomes of the update
            measure = Unclipped()
            measure.bind(scopes, anatomy)
            self._measuring = [(measure, None)]
        self._members = {}
        self._optimizer = None
        self.steps = 0
        if self._waiting is not None:
            try:
                self.load_state_dict(self._waiting, fresh=self._fresh)
            except UserError:
                self._layout = None  # still not bound: the next call must not start afresh unseen
                raise
            self._waiting = None

    def _floor(self, law: Law) -> Floor | None:
        return Floor(self.floor, per=law.per, p=law.p) if self.floor else None

    def attach(self, optimizer: Optimizer) -> None:
        """Clip this optimizer's updates from now on, and no other's, with ``on="update"``; nothing else needs it.

        Raises:
            UserError: a parameter is not the optimizer's; or another one is attached, which would go on unclipped.
        """
        if self.on != "update" or (self._update is not None and self._update.is_of(optimizer)):
            return
        if self._layout is None:
            raise RuntimeError("bind(...) comes before attach()")
        self._check_alone(optimizer)
        named = dict(zip(self._layout.names, self._layout.parameters, strict=True))
        update = Update(optimizer, named, self._clip_update)
        self._end_update()
        self._update, self._optimizer = update, ref(optimizer)

    def _check_alone(self, optimizer: Optimizer) -> None:
        if self._optimizer is not None and self._optimizer() not in (None, optimizer):
            raise UserError(
                "this Clipper clips the updates of another optimizer",
                given=type(optimizer).__name__,
                remedy="Use a Clipper for each optimizer; or bind(...) afresh, which lets the first one go.",
            )

    def _end_update(self) -> None:
        if self._update is not None:
            self._update.end()
        self._update = None

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along; a copy is attached to no optimizer."""
        none = dict.fromkeys(("_update", "_skipping", "_optimizer"))
        return {**self.__dict__, **none, "_members": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_skipping": WeakKeyDictionary()}

    def __call__(self, parameters: Clippable) -> Stats:
        """Clip the gradients of a module, an optimizer, some parameters, or of {scope: any of these}.

        As ``Law`` has it, what it is called with may change; a warm-up and a schedule count the calls, and are
        for one set of parameters too.

        Raises:
            UserError: it has learnt from other parameters, and none of them is among these.
        """
        optimizer = parameters if isinstance(parameters, Optimizer) else None
        if optimizer is not None:
            self._check_alone(optimizer)
        scopes, anatomy = scopes_of(parameters)
        if self._layout is None:
            self.bind(scopes, anatomy)
        elif not self._layout.holds(scopes):
            old, state, attached = self._layout, self.state_dict(), self._optimizer
            self.bind(scopes, anatomy)
            self._optimizer = attached
            if self.warmup or self.schedule != "constant" or has_learnt(state):
                state = carried(state, old, self._layout)
            self.load_state_dict(state)
        return self.apply(optimizer)

    # A step

    @torch.no_grad()
    def apply(self, optimizer: Optimizer | None = None) -> Stats:
        """Clip the gradients in place and say what was done; once per optimizer step.

        With ``on="update"`` the gradients are measured only, and ``updates`` says later what became of the update.

        Args:
            optimizer: whose step follows; a fused one leaves out a step that is skipped.

        Raises:
            UserError: it is missing with ``on="update"``; or there is nothing to clip yet.
        """
        if self._layout is None:
            raise UserError(
                "a Clipper does not know yet what it clips",
                remedy="Call it with that: clip(model.parameters()); or bind(...) comes before apply().",
            )
        self._factor = factor(
            self.schedule,
            self.schedule_end,
            self.steps,
            warmup=self.warmup,
            total=self.total_steps,
        )
        if self.on == "update":
            if optimizer is not None:
                self.attach(optimizer)
            if self._update is None:
                raise UserError(
                    'on="update" needs the optimizer whose updates are clipped',
                    remedy="Give it: apply(optimizer), clip(optimizer), or attach(optimizer) before.",
                )
            self.updates = []
            laws = self._measuring
        else:
            laws = self._parts
        self.steps += 1
        parts = [Gradients(*law.layout.gather()) for law, _ in laws]
        skip = self._guard(parts, optimizer)
        return self._clip(laws, parts, optimizer, skip)

    def _clip_update(self, update: Update) -> None:
        layouts = [law.layout for law, _ in self._parts]
        parts = [
            Gradients(
                *layout.plan(update.updates(layout.parameters)), update.weights(layout.parameters)
            )
            for layout in layouts
        ]
        self.updates.append(self._clip(self._parts, parts, None, None))

    def no_update(self) -> Stats:
        """What ``updates`` would be of a step that the optimizer did not take."""
        layouts = [law.layout for law, _ in self._parts]
        parts = [Gradients(*layout.plan([None] * len(layout.parameters))) for layout in layouts]
        return self._clip(self._parts, parts, None, None)

    def _clip(
        self,
        laws: Sequence[tuple[Law, Floor | None]],
        parts: Sequence[Gradients],
        optimizer: Optimizer | None,
        skip: Tensor | None,
    ) -> Stats:
        done: list[Stats] = []
        for (law, floor), gradients in zip(laws, parts, strict=True):
            law.schedule(self._factor)
            if floor is not None:
                gradients.keep()
            in_force = law.clip(gradients)
            if floor is not None:
                floor.clip(gradients)
            # What one law of several leaves out is its own scopes' gradient, not the whole step.
            if in_force.skipped is not None and len(parts) == 1:
                skip = in_force.skipped if skip is None else skip | in_force.skipped
            done.append(gradients.stats(in_force))
        if skip is not None and optimizer is not None and can_skip(optimizer):
            skip_next(self._skipping, optimizer, skip, look=may_look(skip.device))
        if len(done) == 1:
            return done[0]
        assert self._layout is not None
        return Stats.merge(done, self._layout.scopes, self._members)

    def _guard(self, parts: Sequence[Gradients], optimizer: Optimizer | None) -> Tensor | None:
        """Apply the policy for non-finite gradients; whether the step is to be left out, 0-dim Bool."""
        if self.nonfinite == "pass" or not parts:
            return None
        device = parts[0].raw.device
        total = sum((each.total.to(device) for each in parts[1:]), parts[0].total)
        finite = torch.isfinite(total)
        on_host = all(may_look(g.plan.device) and not g.plan.scattered for g in parts)
        skippable = can_skip(optimizer)
        if not (on_host and bool(finite)):
            for each in parts:
                here = finite.to(each.plan.device)
                if self.nonfinite == "zero":
                    each.mend(here)
                else:
                    each.void(here, left_out=skippable and not on_host)
        return ~finite if skippable and self.nonfinite != "zero" else None

    # Calibration

    @property
    def calibrates(self) -> bool:
        """Whether a threshold is a percentile, of norms that must be seen before the first step."""
        return bool(self._percentiles())

    def observe(self) -> list[Tensor]:
        """The norms of the gradients that are there now, as each threshold that is a percentile wants them."""
        with torch.no_grad():
            return [
                Gradients(*law.layout.gather()).unit_norms(law.per, law.p)
                for law in self._percentiles().values()
            ]

    def calibrate(self, seen: Sequence[Sequence[Tensor]]) -> dict[str, dict[str, float]]:
        """Set these thresholds from what ``observe`` has seen; returns {scope of the law: {unit: threshold}}.

        Raises:
            UserError: nothing finite was seen, or norms so uneven that a percentile says nothing.
        """
        laws = self._percentiles()
        by_law = zip(laws.items(), zip(*seen, strict=True), strict=True)
        return {scope: law.calibrate(torch.stack(norms)) for (scope, law), norms in by_law}

    def _percentiles(self) -> dict[str, Bounded]:
        return {
            scope: law
            for scope, law in self.laws.items()
            if isinstance(law, Bounded) and law.percentile and law.is_bound
        }

    # State

    def state_dict(self) -> dict[str, Any]:
        """Steps, and each law's name, granularity and state."""
        return dict(self._waiting) if self._waiting is not None else state_of(self.laws, self.steps)

    def load_state_dict(self, state: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Take up a state; before there are parameters, it waits for them.

        Args:
            state: from ``state_dict``. A law that it does not know starts afresh.
            fresh: a law that it knows another one for starts afresh, too.

        Raises:
            UserError: the state is of other laws, without ``fresh``; or it is none.
        """
        check_state(state)
        if self._layout is None:
            check_laws(state, self.laws, fresh=fresh)
            self._waiting, self._fresh = dict(state), fresh
            return
        take_up(state, self.laws, fresh=fresh)
        self.steps = int(state["steps"])


def may_look(device: torch.device) -> bool:
    """Whether reading a number there keeps nobody waiting."""
    return device.type == "cpu"
