"""The contract of a clip law: bound once to parameters by scope, applied once per optimizer step.

A law reads gradients, changes them in place and says what it held them to, as tensors on the device. It never waits for
the device: no ``.item()``, no ``bool(tensor)``, no Python ``min`` of tensors, no boolean indexing (a test runs every
law under FakeTensorMode, where each of these raises). What every law keeps to:

- A parameter without a gradient at this step (or a frozen one) is skipped: its norm is 0, its state stays.
- Gradients that need no clipping keep their bits.
- Norms are summed in float32 at least, in float64 for float64 gradients. A gradient whose squares overflow that sum
  (elements above about 1e19 in float32) has an infinite norm, and counts as not finite.
- A unit whose norm is 0 or not finite leaves the law's state as it was, and so does every unit at a step with a
  gradient that came not finite (``Gradients.teaches``); a unit that is not finite passes as it is.
- The number that one sweeps is called ``threshold``; infinity is "off".
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar

import torch

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.carry import carried
from mmrun.clip.layout import Layout, Per, Scopes
from mmrun.clip.memory import Field, Memory
from mmrun.clip.sources import Clippable, scopes_of
from mmrun.clip.stats import Stats
from mmrun.clip.step import Gradients, InForce
from mmrun.clip.words import written
from mmrun.errors import UserError

MOST_WINDOW = 100_000  # norms of each unit that a law remembers: more take seconds a step


class Law(ABC):
    """A clip law. See the module for what every law keeps to.

    Args:
        threshold: the number that one sweeps, in the law's own unit; > 0, infinity is "off".

    Attributes:
        factor: what the threshold is multiplied by at this step (a schedule); infinity during a warm-up.

    Raises:
        UserError: a number out of range.
    """

    algorithm: ClassVar[
        str
    ]  # the name for logs: that of the option; by itself the class's in lower case
    per: Per = "global"  # what has a state of its own, and is measured as one
    percentile: float | None = (
        None  # of norms, that the threshold will be; None where it is a number
    )
    laws: tuple[Law, ...] = ()  # that it is made of
    p: float = 2.0  # the norm that it is measured by

    def __init__(self, threshold: float) -> None:
        if not hasattr(type(self), "algorithm"):  # one of a user's own
            type(self).algorithm = type(self).__name__.lower()
        self.threshold: float = positive(
            "threshold", threshold, hint="Use clip=none to switch clipping off."
        )
        self.factor = 1.0
        self._layout: Layout | None = None
        self._memory: Memory | None = None
        self._waiting: Mapping[str, Any] | None = None  # a state, until there are parameters

    def __repr__(self) -> str:
        percentile = self.percentile
        threshold = f"p{percentile:g}" if percentile else self.threshold
        return written(self, threshold=threshold)

    @property
    def current(self) -> float:
        """The threshold at this step."""
        return self.threshold * self.factor

    @property
    def is_off(self) -> bool:
        """Whether nothing is clipped at this step, whatever is learnt."""
        return self.current == math.inf

    @property
    def layout(self) -> Layout:
        """What the law is bound to."""
        if self._layout is None:
            raise RuntimeError(f"{type(self).__name__}.bind(...) comes before apply()")
        return self._layout

    @property
    def is_bound(self) -> bool:
        """Whether there is anything to clip."""
        return self._layout is not None

    @property
    def memory(self) -> Memory:
        """The state, by unit."""
        if self._memory is None:
            raise RuntimeError(f"{type(self).__name__}.bind(...) comes before its state")
        return self._memory

    def fields(self) -> dict[str, Field]:
        """What the law remembers of each unit; nothing by itself."""
        return {}

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind to {scope: {parameter name: Parameter}}; afresh, so that state starts anew.

        Raises:
            UserError: a parameter is in two scopes.
        """
        self._layout = Layout(scopes, anatomy)
        layout, per = self._layout, self.per
        self._memory = Memory(layout.slots(per), self.fields(), layout.spread_slots(per))

    def schedule(self, factor: float) -> None:
        """Multiply the threshold by this at the next step."""
        self.factor = factor

    @torch.no_grad()
    def apply(self) -> Stats:
        """Clip the gradients in place and say what was done; once per optimizer step."""
        self.take_up_waiting()
        gradients = Gradients(*self.layout.gather())
        return gradients.stats(self.clip(gradients))

    def __call__(self, parameters: Clippable) -> Stats:
        """Clip the gradients of a module, an optimizer, some parameters, or of {scope: any of these}.

        What it is called with may change from step to step: each parameter keeps what was learnt from it. Two
        optimizers want two laws, unless these have nothing to learn.

        Raises:
            UserError: it has learnt from other parameters, and none of them is among these.
        """
        scopes, anatomy = scopes_of(parameters)
        if self._layout is None:
            self.bind(scopes, anatomy)
        elif not self._layout.holds(scopes):
            old, state = self._layout, self.state_dict()
            self.bind(scopes, anatomy)
            if state:
                self.load_state_dict(carried(state, old, self.layout))
        return self.apply()

    @abstractmethod
    def clip(self, gradients: Gradients) -> InForce:
        """The law itself, on this step's gradients."""

    def state_dict(self) -> dict[str, Any]:
        """What must survive a restart, by field and unit; {} where there is nothing."""
        return dict(self._waiting) if self._waiting is not None else self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; before there are parameters, it waits for them. Units that it does not know start afresh.

        Raises:
            UserError: the state is another law's.
        """
        if self.must_wait(state):
            return
        if state and not self.memory.fields:
            raise UserError(
                f"clip={self.algorithm} keeps no state",
                given=", ".join(sorted(state)),
                remedy="Resume with the clip law that the checkpoint was written with.",
            )
        self.memory.load_state_dict(state)

    def must_wait(self, state: Mapping[str, Any]) -> bool:
        """Whether there are no parameters yet that the state could be of: it is kept for them then.

        Raises:
            UserError: it is no state at all.
        """
        if not isinstance(state, Mapping):
            raise UserError(
                "this is no state of a clip law",
                given=type(state).__name__,
                remedy="Give what its state_dict() returned.",
            )
        self._waiting = dict(state) if self._layout is None else None
        return self._layout is None

    def take_up_waiting(self) -> None:
        """Take up the state that came before the parameters did, if one did."""
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            return
        try:
            self.load_state_dict(waiting)
        except UserError:
            self._waiting = waiting  # the next call must not start afresh unseen
            raise


def check_law(law: object, what: str, remedy: str) -> None:
    """Raise UserError that says ``what`` is made of laws, for what is none: its class or its name, most likely."""
    if not isinstance(law, Law):
        named = f"the class {law.__name__}" if isinstance(law, type) else f"{law!r}"
        raise UserError(f"{what} of clip laws", given=named, remedy=remedy)


def positive(key: str, value: float, *, hint: str = "") -> float:
    """``value`` as a float > 0, infinity included.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number > 0:
        raise UserError(
            f"clip.{key} must be a number above 0",
            given=value,
            remedy=f"Give a positive number, or .inf for no bound. {hint}".strip(),
        )
    return number


def finite(key: str, value: float) -> float:
    """``value`` as a finite float > 0.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    number = positive(key, value)
    if number == math.inf:
        raise UserError(f"clip.{key} must be finite", given=value, remedy="Give a number.")
    return number


def nonnegative(key: str, value: float) -> float:
    """``value`` as a finite float >= 0.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    good = not isinstance(value, bool) and isinstance(value, Real)
    if not good or not 0 <= value < math.inf:
        raise UserError(
            f"clip.{key} must be 0 or more, and finite", given=value, remedy="Give 0 or 1e-6."
        )
    return float(value)


def within(key: str, value: float, low: float, high: float, *, ends: bool = False) -> float:
    """``value`` as a float between two numbers, which it may be with ``ends``.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    good = not isinstance(value, bool) and isinstance(value, Real)
    if not good or not (low <= value <= high if ends else low < value < high):
        raise UserError(
            f"clip.{key} is out of range",
            given=value,
            remedy=f"Give a number from {low:g} to {high:g}{'' if ends else ', ends excluded'}.",
        )
    return float(value)


def decay(key: str, value: float) -> float:
    """``value`` as a weight of the past in a running mean: from 0, which forgets at once, to below 1.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    return 0.0 if value == 0 and not isinstance(value, bool) else within(key, value, 0.0, 1.0)


def count(key: str, value: int, *, least: int = 0, most: int | None = None) -> int:
    """``value`` as a whole number from ``least`` to ``most``.

    Raises:
        UserError: it is not; names ``clip.<key>``.
    """
    whole = isinstance(value, Real) and not isinstance(value, bool) and value % 1 == 0
    if not whole or value < least or (most is not None and value > most):
        span = f"{least} or more" if most is None else f"from {least} to {most}"
        raise UserError(f"clip.{key} is a whole number", given=value, remedy=f"Give {span}.")
    return int(value)
