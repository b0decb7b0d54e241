"""Laws one after another, each on what the one before it left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from mmrun.clip.anatomy import NO_ANATOMY, Anatomy
from mmrun.clip.law import Law, check_law
from mmrun.clip.layout import Scopes
from mmrun.clip.none import Unclipped
from mmrun.clip.step import Gradients, InForce
from mmrun.errors import UserError


class Chain(Law):
    """g -> f_k(... f_2(f_1(g))): what each law leaves is the next one's gradient.

    Members that scale take one pass to read and one to write together. The last member is the chain's face: its
    threshold is the chain's, is what a schedule or a warm-up acts on, and is reported; and the chain is measured at
    its granularity. ``payer`` is the product of the members'; a step that one member skips is skipped.

    Args:
        laws: one or more; no chain, and not ``none``.

    Raises:
        UserError: there is none, or one that cannot be a member.
    """

    algorithm: ClassVar[str] = "chain"

    def __init__(self, *laws: Law) -> None:
        if not laws:
            raise UserError("a chain needs laws", remedy="Give e.g. clip.laws=[centralize,norm].")
        for each in laws:
            _check_member(each)
        if len(set(map(id, laws))) < len(laws):
            raise UserError(
                "a law is in a chain twice, and would learn from both places",
                given=", ".join(map(repr, laws)),
                remedy="Make one for each place.",
            )
        last = laws[-1]
        super().__init__(last.threshold)
        self.laws = laws
        self.per = last.per
        self.p = last.p

    def bind(self, scopes: Scopes, anatomy: Anatomy = NO_ANATOMY) -> None:
        """Bind every member to {scope: {parameter name: Parameter}}; afresh, so that state starts anew."""
        super().bind(scopes, anatomy)
        for each in self.laws:
            each.bind(scopes, anatomy)
            each.take_up_waiting()

    def schedule(self, factor: float) -> None:
        """Multiply the last member's threshold by this at the next step."""
        super().schedule(factor)
        self.laws[-1].schedule(factor)

    def clip(self, gradients: Gradients) -> InForce:
        """One member after another."""
        if len(self.laws) > 1:
            gradients.keep()
        payer: torch.Tensor = gradients.plan.no_payer
        skipped: torch.Tensor | None = None
        threshold = gradients.plan.filled(math.inf, 1 + len(gradients.plan.scopes))
        for each in self.laws:
            done = each.clip(gradients)
            threshold, payer = done.threshold, payer * done.payer
            if done.skipped is not None:
                skipped = done.skipped if skipped is None else skipped | done.skipped
        return InForce(threshold, payer, skipped)

    def _members(self) -> dict[str, Law]:
        return {f"{k}:{each.algorithm}": each for k, each in enumerate(self.laws)}

    def state_dict(self) -> dict[str, Any]:
        """{position and name of a member: its state}, of those that have one."""
        if self._waiting is not None or not self.is_bound:
            return super().state_dict()
        states = {key: each.state_dict() for key, each in self._members().items()}
        return {key: state for key, state in states.items() if state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state, as ``Law``.

        Raises:
            UserError: the state is of another chain, or of another law.
        """
        if self.must_wait(state):
            return
        members = self._members()
        if not set(state) <= set(members):
            raise UserError(
                "this state is of another chain",
                given=", ".join(sorted(map(str, state))),
                remedy=f"This one is {', '.join(members)}.",
            )
        for key, each in members.items():
            each.load_state_dict(state.get(key, {}))


def _check_member(law: Law) -> None:
    check_law(law, "a chain is made", "E.g. Chain(Centralize(), Norm(1.0)).")
    if isinstance(law, Chain | Unclipped):
        raise UserError(
            f"clip={law.algorithm} cannot be part of a chain",
            remedy="Name its laws, or leave it out.",
        )
    if law.percentile is not None:
        raise UserError(
            "a law in a chain takes its threshold as a number: a percentile is one of gradients that no law has changed",
            given=f"p{law.percentile:g} of {law.algorithm}",  # pyright: ignore[reportAttributeAccessIssue]
            remedy="Give e.g. clip.threshold=1.0; or a run to take it of, clip.calibrate_from=RUN.",
        )
