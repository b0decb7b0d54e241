"""The engine: laws by scope, schedules, floor, non-finite gradients, state, and how one calls it."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrun import clip
from mmrun.clip import Clipper, Norm, Value
from mmrun.clip.none import Unclipped
from mmrun.errors import UserError

INF = math.inf


def scoped(*gradients: list[float]) -> dict[str, dict[str, nn.Parameter]]:
    """One parameter per scope a, b, c, ... with this gradient."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for scope, gradient in zip("abcd", gradients, strict=False):
        found[scope] = {"w": nn.Parameter(torch.zeros(len(gradient)))}
        found[scope]["w"].grad = torch.tensor(gradient)
    return found


def grads(bound: dict[str, dict[str, nn.Parameter]]) -> list[list[float]]:
    return [p.grad.tolist() for n in bound.values() for p in n.values() if p.grad is not None]


def applied(clipper: Clipper, *gradients: list[float]) -> tuple[list[list[float]], Any]:
    bound = scoped(*gradients)
    clipper.bind(bound)
    stats = clipper.apply()
    return grads(bound), stats.by_scope()


# Scopes


def test_a_scope_with_a_law_of_its_own_is_no_part_of_the_others_norm():
    out, fields = applied(
        Clipper(Norm(1.0), scopes={"b": Value(0.5)}), [3.0, 4.0], [9.0, -0.1], [0.0]
    )
    assert out == [pytest.approx([0.6, 0.8]), [0.5, pytest.approx(-0.1)], [0.0]]
    assert fields["norm"].tolist() == pytest.approx([math.sqrt(25 + 81.01), 5, math.sqrt(81.01), 0])
    assert fields["norm_clipped"].tolist() == pytest.approx(
        [math.sqrt(1.26), 1, math.sqrt(0.26), 0]
    )
    assert fields["threshold"].tolist() == [1, 1, 0.5, 1]
    assert fields["elements"].tolist() == pytest.approx([3 / 5, 1, 1 / 2, 0])


def test_laws_for_all_scopes_are_the_laws_alone():
    together, fields = applied(
        Clipper(Unclipped(), scopes={"a": Norm(1.0), "b": Norm(2.0)}), [3.0, 4.0], [0.0, 8.0]
    )
    for scope, threshold, gradient in (("a", 1.0, [3.0, 4.0]), ("b", 2.0, [0.0, 8.0])):
        alone, its = applied(Clipper(Norm(threshold)), gradient)
        k = "ab".index(scope)
        assert together[k] == alone[0]
        for name in ("norm", "norm_clipped", "coefficient", "threshold"):
            assert fields[name][1 + k] == its[name][0]


def test_one_law_bound_by_scope_is_the_law():
    raw = [3.0, 4.0], [0.3]
    plain, fields = applied(Clipper(Norm(1.0, per="modality", budget="each")), *raw)
    by_hand, others = applied(Clipper(Norm(1.0), scopes={"a": Norm(1.0), "b": Norm(1.0)}), *raw)
    assert plain == by_hand
    for name in ("norm", "norm_clipped", "coefficient", "cosine", "elements"):
        assert torch.equal(fields[name], others[name])


def test_a_law_for_a_scope_that_there_is_not():
    with pytest.raises(UserError, match=r"clip\.scopes.*audo.*audio"):
        Clipper(Norm(1.0), scopes={"audo": Value(1.0)}).bind({"audio": {}, "text": {}})


# Schedules


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.775, 0.55, 0.325, 0.1]),
        (
            "cosine",
            [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1],
        ),
        ("exponential", [1, 0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1]),
    ],
)
def test_schedules(schedule: Any, want: list[float]):
    """From the full threshold after the warm-up to its last share at the last step; it stays there."""
    clipper = Clipper(Norm(2.0), schedule=schedule, warmup=2, total_steps=7)
    bound = scoped([30.0, 40.0])
    clipper.bind(bound)
    seen: list[float] = []
    for _ in range(8):
        bound["a"]["w"].grad = torch.tensor([30.0, 40.0])
        fields = clipper.apply().by_scope()
        seen.append(fields["threshold"][0].item())
        assert fields["norm_clipped"][0] == pytest.approx(min(50, seen[-1]))
    assert seen == pytest.approx([INF, INF, *(2 * each for each in want), 2 * want[-1]])


def test_a_schedule_needs_a_length():
    with pytest.raises(UserError, match=r"schedule.*cosine.*total_steps"):
        Clipper(Norm(1.0), schedule="cosine")


# Floor


@pytest.mark.parametrize(
    ("law", "raw", "want"),
    [
        (Norm(10.0), [0.3, 0.4], [1.2, 1.6]),
        (Norm(10.0), [3.0, 4.0], [3.0, 4.0]),
        (Norm(10.0), [30.0, 40.0], [6.0, 8.0]),
        (Unclipped(), [0.0, 0.5], [0.0, 2.0]),
        (Unclipped(), [0.0, 0.0], [0.0, 0.0]),
        (Unclipped(), [30.0, 40.0], [30.0, 40.0]),
        (Value(0.1), [1.0, 0.0], [2.0, 0.0]),
    ],
)
def test_a_smaller_norm_is_raised_to_the_floor(law: Any, raw: list[float], want: list[float]):
    out, fields = applied(Clipper(law, floor=2.0), raw)
    assert out == [pytest.approx(want)]
    n, m = math.hypot(*raw), math.hypot(*want)
    assert fields["coefficient"][0] == pytest.approx(m / n if n else 1)
    assert fields["elements"][0] == pytest.approx(
        sum(a != pytest.approx(b) for a, b in zip(raw, want, strict=True)) / 2
        if isinstance(law, Value) else float(n != pytest.approx(m))
    )  # fmt: skip


def test_the_floor_has_the_granularity_of_the_law():
    law = Norm(10.0, per="modality", budget="each")
    out, _ = applied(Clipper(law, floor=1.0), [0.3, 0.4], [3.0, 4.0])
    assert out == [pytest.approx([0.6, 0.8]), [3.0, 4.0]]


# Gradients that are not finite


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize(
    ("policy", "want"),
    [
        ("skip", [[0.0, 0.0], [0.0]]),
        ("raise", [[0.0, 0.0], [0.0]]),
        ("zero", [[0.0, 0.6], [0.8]]),
    ],
)
def test_policies(
    policy: Any, want: list[list[float]], bad: float, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
):
    if on_gpu:
        monkeypatch.setattr("mmrun.clip.engine.may_look", lambda device: False)  # noqa: ARG005
    clipper = Clipper(Norm(1.0), nonfinite=policy)
    out, fields = applied(clipper, [bad, 3.0], [4.0])
    assert out == [pytest.approx(each) for each in want]
    assert not math.isfinite(fields["norm"][0])
    assert fields["norm"][2] == 4
    assert fields["norm_clipped"][0] == pytest.approx(math.hypot(*want[0], *want[1]))
    assert fields["elements"].tolist() == [0, 0, 0], "the policy is not the law"
    assert fields["coefficient"][0] == 1
    out, fields = applied(clipper, [0.0, 3.0], [4.0])
    assert out == [pytest.approx([0.0, 0.6]), pytest.approx([0.8])]
    assert fields["norm"][0] == 5


def test_what_passes_passes():
    out, _ = applied(Clipper(Norm(1.0), nonfinite="pass"), [INF, 3.0], [4.0])
    assert out == [[INF, 3.0], [4.0]]


# Calibration


def calibrated(law: Norm, *norms: tuple[float, float]) -> tuple[Clipper, dict[str, Any]]:
    """A clipper that has seen gradients of these lengths in scopes a and b."""
    clipper, seen = Clipper(law), []
    bound = scoped([0.0], [0.0])
    clipper.bind(bound)
    assert clipper.calibrates
    for lengths in norms:
        for named, length in zip(bound.values(), lengths, strict=True):
            named["w"].grad = torch.tensor([length])
        seen.append(clipper.observe())
    return clipper, clipper.calibrate(seen)


def test_a_percentile_is_of_the_finite_norms_that_were_seen():
    norms = [(3.0, 4.0), (6.0, 8.0), (math.nan, 1.0), (30.0, 40.0), (0.0, 0.0)]
    clipper, found = calibrated(Norm("p50"), *norms)
    assert found == {"": {"": 10.0}}
    assert clipper.threshold == "p50"
    bound = scoped([30.0], [40.0])
    clipper.bind(bound)
    with pytest.raises(RuntimeError, match="calibrate"):
        clipper.apply()
    clipper, found = calibrated(Norm("p75", per="modality"), *norms)
    assert found == {"": {"a": 18.0, "b": 16.0}}, "numpy's percentile of 3 6 30 and of 1 4 8 40"
    stats = clipper.apply().by_scope()
    assert stats["threshold"].tolist() == pytest.approx([math.hypot(18, 16), 18, 16])
    again = Clipper(Norm("p75", per="modality"))
    again.bind(scoped([30.0], [4.0]))
    again.load_state_dict(clipper.state_dict())
    assert again.apply().by_scope()["norm_clipped"].tolist() == pytest.approx(
        [math.hypot(18, 4), 18, 4]
    )


def test_what_says_nothing_is_refused():
    with pytest.raises(UserError, match=r"p99 of what it bounds is .* times the p50.*p90"):
        calibrated(Norm("p90"), *[(1.0, 0.0)] * 10, (1e6, 0.0))
    with pytest.raises(UserError, match="no gradient was finite"):
        calibrated(Norm("p90"), (0.0, 0.0), (INF, 1.0))
    for word in ("p0", "p101", "q90", "p", "p-1"):
        with pytest.raises(UserError, match=r"clip\.threshold.*percentile"):
            Norm(word)
    with pytest.raises(UserError, match=r"update.*calibrate_from"):
        Clipper(Norm("p90"), on="update")


# State


def test_state_is_kept_by_scope_and_another_law_is_told():
    def made(law: Any, **scopes: Any) -> Clipper:
        clipper = Clipper(law, scopes=scopes)
        clipper.bind(scoped([1.0], [1.0]))
        return clipper

    first = made(Norm(1.0, per="modality", split="norm"), b=Value(0.1))
    for _ in range(3):
        first.apply()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = made(Norm(1.0, per="modality", split="norm"), b=Value(0.1))
    again.load_state_dict(state)
    assert again.steps == 3
    mean = again.laws[""].state_dict()["mean"]["a"]
    assert torch.equal(mean, first.laws[""].state_dict()["mean"]["a"])
    assert mean > 0
    for other in (made(Value(1.0), b=Value(0.1)), made(Norm(1.0), b=Value(0.1))):
        with pytest.raises(
            UserError, match=r"another clip law.*norm per modality, and this is.*fresh"
        ):
            other.load_state_dict(state)
        other.load_state_dict(state, fresh=True)
        assert other.steps == 3
    with pytest.raises(UserError, match=r"another clip law for a.*no law"):
        made(Norm(1.0, per="modality", split="norm"), a=Value(0.1), b=Value(0.1)).load_state_dict(
            state
        )


# Calling it


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    model(torch.randn(8, 3)).square().sum().backward()
    return model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("what", ["module", "parameters", "named", "optimizer", "scopes", "list"])
@pytest.mark.parametrize("engine", [False, True])
def test_it_takes_what_one_has(what: str, engine: bool):
    model, theirs = linear(), linear()
    given: Any = {
        "module": model,
        "parameters": model.parameters(),
        "named": dict(model.named_parameters()),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "scopes": {"w": [model.weight], "b": {"bias": model.bias}},
        "list": list(model.parameters()),
    }[what]
    clip_ = Clipper(Norm(0.5)) if engine else Norm(0.5)
    stats = clip_(given)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert stats["norm"][""] == pytest.approx(norm.item())
    torch.testing.assert_close(flat(model), flat(theirs))
    assert set(stats["coefficient"]) == {"", *(("w", "b") if what == "scopes" else ("parameters",))}


def test_it_is_bound_once_and_keeps_its_state_when_a_part_is_added():
    model, other = linear(), linear(1)
    law = Norm(0.5, per="modality", split="norm")
    law({"a": model})
    layout = law.layout
    law({"a": model})
    assert law.layout is layout
    before = law.state_dict()["mean"]["a"].clone()
    for p in model.parameters():
        p.grad = None
    law({"a": model, "b": other})
    assert law.layout is not layout
    assert torch.equal(law.state_dict()["mean"]["a"], before)
    assert law.state_dict()["mean"]["b"] > 0


def test_what_it_does_not_take():
    with pytest.raises(UserError, match=r"parameters.*int.*model\.parameters"):
        Norm(1.0)([1, 2])  # pyright: ignore[reportArgumentType]


def test_laws_are_found_by_name():
    assert clip.Norm is clip.norm.Norm
    assert clip.Unclipped is Unclipped
    with pytest.raises(AttributeError, match="Nrom"):
        _ = clip.Nrom


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"on": "weights"}, r"clip\.on.*weights.*gradient"),
        ({"schedule": "cosin"}, r"clip\.schedule.*cosine"),
        ({"nonfinite": "skipp"}, r"clip\.nonfinite.*skip"),
        ({"floor": -1.0}, r"clip\.floor"),
        ({"floor": INF}, r"clip\.floor"),
        ({"warmup": -1}, r"clip\.warmup"),
        ({"warmup": 1.5}, r"clip\.warmup"),
        ({"schedule_end": 0.0}, r"clip\.schedule_end"),
        ({"max_nonfinite": 0}, r"clip\.max_nonfinite"),
        ({"record_every": 0}, r"clip\.record_every"),
        ({"record_every": True}, r"clip\.record_every"),
        ({"calibration_batches": 0}, r"clip\.calibration_batches"),
    ],
)
def test_refused(knobs: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        Clipper(Norm(1.0), **knobs)
