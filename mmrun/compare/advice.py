"""What do these norms say about a threshold? Sentences, each only where it applies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmrun.compare.candidates import (
    EXPLODED,
    UPDATE,
    VANISHING,
    Measured,
    early_and_late,
    spread,
    typed,
)
from mmrun.compare.command import key_of
from mmrun.compare.trials import (
    NO_LAW,
    NOTICEABLE,
    Suggestion,
    cancels,
    controlled,
    diverged,
    learning_rates,
    number,
    optimizer,
)
from mmrun.exits import shown
from mmrun.runs import verdict

WIDE = 100.0  # p99 / p50 above it: no fixed threshold suits
DRIFTED = 3.0  # between the medians of the first tenth of the steps and of the last half
FEW = 100  # steps, of which p99 is the longest one


def heading(suggestion: Suggestion) -> str:
    """What was measured, over how many steps, of which run."""
    record, measured = suggestion.record, suggestion.measured
    n_rows = measured.everything.norms.size + measured.nonfinite + measured.exploded
    what = "norms of the update" if measured.column == UPDATE else "raw gradient norms"
    steps = f"{n_rows} of {measured.last_step}" if n_rows < measured.last_step else str(n_rows)
    going = " so far" if record["status"] == "running" else ""
    out = f"; {measured.nonfinite} not finite, left out" if measured.nonfinite else ""
    if measured.exploded:
        out += f"; {measured.exploded} of the divergence, left out"
    where = shown(suggestion.directory.absolute())
    unit = "step" if n_rows == measured.last_step == 1 else "steps"
    return f"{what} before clipping, over {steps} {unit}{going}{out}; {where}"


def notes(suggestion: Suggestion) -> list[str]:
    """What the numbers mean, a sentence or two per line."""
    measured = suggestion.measured
    n = measured.everything.norms.size
    last = "p90 hangs" if diverged(suggestion.record) else "p95 and p99 hang"
    few = f"few steps, {n}: {last} on one or two of them" if n < FEW else ""
    said = [
        _meaning(measured),
        few,
        _spread(measured),
        _drift(measured),
        _trained(suggestion.record),
        _vanishing(measured),
        _of_a_scope(measured),
        _adaptive(suggestion),
        _control(suggestion),
    ]
    return [line for line in said if line]


def _meaning(measured: Measured) -> str:
    """A mild threshold and the hardest one."""
    *_, longest = found = measured.everything.candidates
    hard, mild = found[0], next((each for each in found if each.name == "p90"), longest)
    said = (
        f"{mild.name}, {number(mild.threshold)}, would have clipped {percent(mild.clipped)} of steps "
        f"and left the mean step {_share(mild.coefficient)} of its length"
    )
    if hard.threshold == mild.threshold:
        return said
    return (
        f"{said}: it cuts the longest; {hard.name}, {number(hard.threshold)}, would have left "
        f"{_share(hard.coefficient)}, which is nearer to a smaller learning rate"
    )


def _spread(measured: Measured) -> str:
    ratio = spread(measured.everything.norms)
    if ratio <= WIDE:
        return ""
    far = f"{_short(ratio)} times p50" if np.isfinite(ratio) else "above a p50 of 0"
    return (
        f"p99 is {far}: the norms have no common size, and no fixed threshold suits most steps; "
        "try a law that follows them (mmrun list clip)"
    )


def _drift(measured: Measured) -> str:
    """Is it one training or two? The first steps often have far longer gradients than the rest."""
    first, last = early_and_late(measured.everything.norms)
    if not first.size:
        return ""
    before, after = float(np.median(first)), float(np.median(last))
    if max(before, after) <= DRIFTED * min(before, after):
        return ""
    low, high, top = (_short(float(value)) for value in np.percentile(last, (50, 90, 100)))
    moved = f"median norm {_short(before)} in the first tenth, {_short(after)} in the last half"
    if before > after:
        return (
            f"{moved}: a threshold above {top} acts in the first half alone; to act later too, take one "
            f"from {low} to {high} (p50 and p90 of that half)"
        )
    return (
        f"{moved}: a fixed threshold clips more and more; to spare most late steps, take {high} "
        "or more (p90 of that half)"
    )


def _trained(record: Mapping[str, Any]) -> str:
    """Under which law these norms came about: another one trains along another path."""
    choice = str(record["choices"].get("clip", "none"))
    said = "another threshold trains along another path, with other norms: this is where to look"
    if choice != "none":
        words = [f"clip={choice}", *_law_of_its_own(record)]
        said = f"the norms are raw ones of a training that was clipped by {' '.join(words)}; {said}"
    if diverged(record):
        said += (
            "; it diverged, and the longest norms are part of that: those above "
            f"{EXPLODED:.0f} times the median before them count for nothing here, p95 and p99 are not told"
        )
    return said


def _law_of_its_own(record: Mapping[str, Any]) -> list[str]:
    """What the user set of the law beside its threshold, which the choice tells."""
    own = [str(each) for each in record["overrides"]]
    told = ("clip.threshold", *NO_LAW)
    return [o for o in own if key_of(o).startswith("clip.") and key_of(o) not in told]


def _vanishing(measured: Measured) -> str:
    gone = [scope for scope in measured.scopes if scope.vanishing]
    if not gone:
        return ""
    listed = ", ".join(f"{scope.name} ({scope.share:.1g})" for scope in gone)
    return (
        f"vanishing, below {VANISHING} of the squared norm: {listed}; no threshold on all scopes "
        "together acts for such a scope's sake: does it learn at all?"
    )


def _of_a_scope(measured: Measured) -> str:
    able = [scope for scope in measured.scopes if scope.candidates]
    if not able:
        return ""
    largest = max(able, key=lambda scope: scope.share)
    threshold = number(largest.candidates[-1].threshold)
    on = " clip.on=update" if measured.column == UPDATE else ""
    return (
        f"to clip one scope alone: clip=none{on} clip.scopes.{largest.name}=norm_{threshold} "
        f"(its {largest.candidates[-1].name})"
    )


def _adaptive(suggestion: Suggestion) -> str:
    if not cancels(suggestion):
        return ""
    return (
        f"with {verdict.optimizer_label(optimizer(suggestion.record))} a constant factor on the gradient "
        "cancels: expect its clipping to do little; clip.on=update clips the step itself (suggest on "
        "such a run takes the norms of steps)"
    )


def _control(suggestion: Suggestion) -> str:
    """What the control is, and what follows from it."""
    chosen, rates = controlled(suggestion), learning_rates(suggestion.record["config"])
    if not chosen:
        return ""
    if not rates:
        return "no control: the run's config names no learning rate"
    rate, hard = next(iter(rates.values())), chosen[0]
    said = (
        "control, is it only a smaller learning rate? no clipping at lr x mean coefficient, "
        f"{number(rate)} x {_share(hard.coefficient)} for {hard.name} (not the median: it is 1 where "
        "at most half of the steps are clipped); if that does as well, it was"
    )
    if hard.coefficient > NOTICEABLE:
        off = percent(1 - hard.coefficient)
        said += f"; here that is {off} less, which seeds will hide"
    return said


def _short(value: float) -> str:
    return number(typed(value))


def _share(value: float) -> str:
    return f"{value:.2f}"


def percent(share: float) -> str:
    """A share as one says it: 11 %, 0.5 %."""
    value = 100 * share
    if 0 < value < 0.1:
        return "<0.1 %"
    return f"{value:.1f} %" if 0 < value < 0.95 else f"{value:.0f} %"
