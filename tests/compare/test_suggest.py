"""``mmrun suggest``: numbers by the definition, sentences that follow from them, lines that can be pasted."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrun import cli, compose
from mmrun.compare import advice, suggest, trials
from mmrun.compare.candidates import QUANTILES, candidates, measure
from mmrun.compare.command import variant
from mmrun.errors import UserError
from mmrun.runs.table import CsvTable
from tests.compare.fakes import fake
from tests.running import SMALL, mmrun

RUN = Path("outputs/run")
MOMENTUM = ("optimizer=momentum", "optimizer.lr=0.2")


def lengths(n: int = 400, *, seed: int = 0) -> np.ndarray:
    """Norms as trainings have them: of one size, with a tail; no drift."""
    return np.random.default_rng(seed).lognormal(0.0, 0.6, n)


def recorded(
    norms: Any = None,
    *overrides: str,
    every: int = 1,
    column: str = "grad/norm",
    others: dict[str, Any] | None = None,
    status: str = "finished",
) -> None:
    """A run directory with these norms; image has 0.8 of their length and text 0.6."""
    fake(RUN, *(overrides or MOMENTUM), status=status)
    norms = lengths() if norms is None else np.asarray(norms, dtype=float)
    columns = {
        "grad/norm": lengths(len(norms), seed=9) if column != "grad/norm" else norms,
        column: norms,
        f"{column}/image": 0.8 * norms,
        f"{column}/text": 0.6 * norms,
        **(others or {}),
    }
    with CsvTable(RUN / "gradients.csv", ["step", *columns]) as table:
        table.extend({"step": every * np.arange(1, len(norms) + 1), **columns})


def changed(**keys: Any) -> None:
    """Change run.json."""
    path = RUN / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def notes() -> str:
    return "\n".join(advice.notes(suggest.suggest(RUN)))


def lines() -> list[tuple[str, list[str]]]:
    """[(label, words)] of the commands."""
    found = trials.commands(suggest.suggest(RUN))
    return [(label, shlex.split(line)) for label, line in found]


def points(words: list[str]) -> list[Any]:
    """The points of a printed line, composed as ``mmrun train -m`` would."""
    assert words[:3] == ["mmrun", "train", "-m"]
    assert compose.is_sweep(words[2:])
    return list(compose.sweep(words[3:]).points)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong command is answered with."""
    before = sorted(Path().rglob("*"))
    assert cli.main(["suggest", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(Path().rglob("*")) == before
    return err


# Numbers


def test_candidates_by_definition():
    norms = lengths()
    found = candidates(norms)
    assert [each.name for each in found] == ["p50", "p75", "p90", "p95", "p99"]
    for quantile, each in zip(QUANTILES, found, strict=True):
        c = each.threshold
        assert c == pytest.approx(np.percentile(norms, quantile), rel=0.005)
        assert float(f"{c:.3g}") == c
        assert each.clipped == sum(n > c for n in norms) / len(norms)
        assert each.clipped == pytest.approx(1 - quantile / 100, abs=0.01)
        assert each.coefficient == pytest.approx(sum(min(1, c / n) for n in norms) / len(norms))


def test_shares_are_those_of_the_number_that_is_typed():
    """p75 of these is 1.2346, and 1.23 clips what lies between."""
    (_, p75, *_) = candidates(np.array([1.0, 1.1, 1.2, 1.2346, 1.2346]))
    assert (p75.threshold, p75.clipped) == (1.23, 0.4)
    assert p75.coefficient == pytest.approx((3 + 2 * 1.23 / 1.2346) / 5)


def test_zero_is_no_threshold_and_a_zero_norm_is_not_clipped():
    found = candidates(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 4.0]))
    assert [each.name for each in found] == ["p75", "p90", "p95", "p99"]
    assert found[0].threshold == 1.0
    assert found[0].coefficient == pytest.approx((5 + 1 / 2 + 1 / 4) / 7)
    assert candidates(np.array([])) == ()


def test_a_norm_at_the_threshold_is_not_clipped():
    assert {(c.clipped, c.coefficient) for c in candidates(np.full(9, 2.0))} == {(0.0, 1.0)}


def test_what_is_not_finite_is_left_out_and_counted():
    norms = [1.0, 2.0, 3.0]
    recorded([*norms, np.nan, np.inf])
    found = suggest.suggest(RUN)
    assert found.measured.everything.candidates == candidates(np.array(norms))
    assert found.measured.nonfinite == 2
    assert "over 5 steps; 2 not finite, left out" in advice.heading(found)


def test_scopes_and_their_shares():
    recorded(others={"grad/norm/fusion": np.full(400, 1e-3)})
    columns = columns_of(RUN)
    found = measure(columns)
    image, text, fusion = found.scopes
    assert (image.name, text.name, fusion.name) == ("image", "text", "fusion")
    assert image.share == pytest.approx(0.64, abs=1e-3)
    assert text.share == pytest.approx(0.36, abs=1e-3)
    assert image.candidates == candidates(columns["grad/norm/image"])
    assert [scope.vanishing for scope in found.scopes] == [False, False, True]


def columns_of(run: Path) -> dict[str, Any]:
    from mmrun.runs import read_columns

    return read_columns(run / "gradients.csv")


# While it runs, and after whatever end


def test_a_run_still_going_and_a_torn_row():
    recorded(lengths(120), status="running")
    changed(pid=os.getpid(), host=os.uname().nodename)
    with (RUN / "gradients.csv").open("a") as file:
        file.write("121,99999,99")
    found = suggest.suggest(RUN)
    assert found.measured.everything.norms.max() < 100
    assert "over 120 steps so far" in advice.heading(found)


@pytest.mark.parametrize("status", ["finished", "failed", "killed", "diverged", "cancelled"])
def test_every_end(status: str):
    recorded(status=status)
    text = suggest.text(suggest.suggest(RUN))
    assert "over 400 steps;" in text
    assert ("it diverged, and the longest norms" in text) == (status == "diverged")


def test_a_divergence_is_no_threshold():
    calm = lengths(200)
    norms = np.concatenate([calm, np.geomspace(100, 1e13, 150), [np.nan]])
    recorded(norms, status="diverged")
    found = suggest.suggest(RUN)
    told = [(each.name, each.threshold) for each in found.measured.everything.candidates]
    assert told == [(each.name, each.threshold) for each in candidates(calm)[:3]]
    assert all(scope.candidates[-1].threshold < 5 for scope in found.measured.scopes)
    assert "351 steps; 1 not finite, left out; 150 of the divergence, left out" in advice.heading(
        found
    )
    assert json.loads(suggest.text(found, format="json"))["exploded"] == 150
    asked = {point.config["clip"].get("threshold", 0) for point in points(lines()[0][1])}
    assert len(asked) == 4
    assert max(asked) < 5
    changed(status="finished", stability="ok")
    assert suggest.suggest(RUN).measured.everything.candidates[-1].name == "p99"
    assert suggest.suggest(RUN).measured.exploded == 0


def test_thinned_rows_say_so():
    recorded(lengths(200), *MOMENTUM, "clip.record_every=5", every=5)
    assert "over 200 of 1000 steps;" in advice.heading(suggest.suggest(RUN))
    for label, words in lines()[:2]:
        assert "clip.record_every=5" in words, label
        assert all(point.config["clip"]["record_every"] == 5 for point in points(words))


# Sentences


def test_vanishing_scopes_are_named():
    recorded(others={"grad/norm/fusion": 0.03 * lengths(), "grad/norm/missing": np.zeros(400)})
    assert "0.001 of the squared norm: fusion (0.0009), missing (0); no" in notes()
    (missing,) = (
        line for line in suggest.text(suggest.suggest(RUN)).splitlines() if "missing  " in line
    )
    assert missing.split() == ["missing", "0", "%", "threshold", "-", "-", "-", "-", "-"]


def test_nothing_vanishes():
    recorded()
    assert "vanishing" not in notes()


@pytest.mark.parametrize(("tail", "said"), [(50, False), (1e4, True)])
def test_norms_without_a_common_size(tail: float, said: bool):
    norms = np.ones(400)
    norms[::40] = tail
    recorded(norms)
    assert ("1e+04 times p50" in notes().replace("10000", "1e+04")) == said


def test_long_gradients_at_the_start():
    recorded(np.concatenate([np.full(50, 10.0), np.linspace(1.0, 2.0, 350)]))
    assert (
        "median norm 10 in the first tenth, 1.71 in the last half: a threshold above 2 acts in the "
        "first half alone; to act later too, take one from 1.71 to 1.94" in notes()
    )


def test_gradients_that_grow():
    recorded(np.linspace(0.1, 5.0, 400))
    assert "a fixed threshold clips more and more; to spare most late steps, take 4.76" in notes()


def test_no_drift_where_there_is_none_or_too_few_steps_to_tell():
    recorded()
    assert "last half" not in notes()
    with (RUN / "gradients.csv").open("w") as file:
        file.write("step,grad/norm\n1,100\n" + "".join(f"{k},1\n" for k in range(2, 20)))
    assert "last half" not in notes()
    assert "few steps, 19:" in notes()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ((), ""),
        (("clip=0.5",), "clipped by clip=0.5;"),
        (("clip=value_0.1", "clip.record_every=1"), "clipped by clip=value_0.1;"),
        (("clip=0.5", "clip.threshold=0.5", 'clip.per="modality"'), "clip=0.5 clip.per=\"modality\";"),
    ],
)  # fmt: skip
def test_the_law_of_the_run_is_told(overrides: tuple[str, ...], said: str):
    recorded(None, *MOMENTUM, *overrides)
    assert said in notes()
    assert ("clipped by" in notes()) == bool(said)


def test_adam_cancels_a_constant_factor():
    recorded(None, "optimizer.lr=0.003")  # AdamW
    assert "with AdamW a constant factor on the gradient cancels" in notes()
    assert "clip.on=update" in notes()
    assert "update" not in [label for label, _ in lines()]  # made before there was such a setting
    record = json.loads((RUN / "run.json").read_text())
    record["config"]["clip"]["on"] = "gradient"
    changed(config=record["config"], overrides=["optimizer.lr=0.003", "clip=0.5", "seed=4"])
    (words,) = (words for label, words in lines() if label == "update")
    made = ["optimizer.lr=0.003", "seed=4", "clip=none", "clip.on=update"]
    assert words == ["mmrun", "train", *made]


def test_momentum_does_not():
    recorded()
    assert "cancels" not in notes()


@pytest.mark.parametrize("column", ["grad/norm", "update/norm"])
def test_a_scope_is_clipped_alone(column: str):
    recorded(column=column)
    image = suggest.suggest(RUN).measured.scopes[0]
    (line,) = (each for each in notes().splitlines() if each.startswith("to clip one scope alone"))
    words = [word for word in line.split() if word.startswith("clip") and "=" in word]
    clip = compose.point(["optimizer=momentum", *words]).config["clip"]
    assert clip["_target_"] == "mmrun.clip.none.Unclipped"
    assert clip["on"] == ("update" if column == "update/norm" else "gradient")
    assert list(clip["scopes"]) == ["image"]
    assert clip["scopes"]["image"]["_target_"] == "mmrun.clip.norm.Norm"
    assert clip["scopes"]["image"]["threshold"] == image.candidates[-1].threshold


def test_the_control_says_what_it_is():
    recorded()
    p50 = suggest.suggest(RUN).measured.everything.candidates[0]
    assert f"lr x mean coefficient, 0.2 x {p50.coefficient:.2f} for p50" in notes()
    assert "seeds will hide" not in notes()


def test_a_control_that_seeds_will_hide():
    recorded(1 + 0.02 * np.sin(np.arange(400)))
    assert "here that is 0.6 % less, which seeds will hide" in notes()
    assert sum(label == "control" for label, _ in lines()) == 1


# Lines to paste


def test_the_sweep_and_its_control():
    recorded(None, *MOMENTUM, "clip=0.5", "seed=2")
    candidates_found = suggest.suggest(RUN).measured.everything.candidates
    (sweep, words), (control, others), (then, compare) = lines()
    assert (sweep, control, then) == ("sweep", "control", "then")
    assert words[3:6] == ["optimizer=momentum", "optimizer.lr=0.2", "seed=2"]
    found = points(words)
    asked = {point.config["clip"].get("threshold") for point in found}
    assert asked == {None, *(each.threshold for each in candidates_found)}
    assert {point.config["seed"] for point in found} == {2, 3, 4}
    assert len(found) == 18
    assert {point.config["optimizer"]["lr"] for point in found} == {0.2}
    arms = points(others)
    lowered = [c for c in candidates_found if c.coefficient <= 0.95]
    assert len(lowered) > 1
    rates = sorted({point.config["optimizer"]["lr"] for point in arms})
    assert rates == pytest.approx([0.2 * c.coefficient for c in lowered], rel=0.005)
    assert {point.choices["clip"] for point in arms} == {"none"}
    assert len(arms) == 3 * len(rates)
    assert {point.config["optimizer"]["momentum"] for point in arms} == {0.9}
    names = {word for line in (words, others) for word in line if word.startswith("sweep=")}
    assert [f"sweep={compare[-1]}"] == [*names]


def test_what_the_command_keeps_and_leaves_out():
    recorded()
    own = [
        "optimizer={lr: 0.3, momentum: 0.5}",
        "++optimizer.nesterov=true",
        "clip=norm",
        "clip={threshold: 3}",
        "clip.per=modality",
        "+clip.p=1",
        "name=my run",
        "trainer.max_epochs=2",
        "outputs=else where",
        "optimizer=momentum",
    ]
    changed(overrides=own, config_dirs=["/my conf"], resumed={"trainer.max_epochs": 5})
    (_, words), (_, others), (_, compare) = lines()
    assert words[:5] == ["mmrun", "train", "--config-dir", "/my conf", "-m"]
    for each in (words, others):
        assert own[0] in each
        assert own[1] in each
        assert "outputs=else where" in each
        assert "trainer.max_epochs=5" in each
        assert sum(word.lstrip("+").startswith(("clip", "name", "trainer")) for word in each) == 2
    assert (
        compare[-1]
        == "else where/thresholds-" + json.loads((RUN / "run.json").read_text())["id"][:8]
    )
    assert {p.config["optimizer"]["momentum"] for p in points([*words[:2], *words[4:]])} == {0.5}
    assert all(p.config["optimizer"]["lr"] < 0.2 for p in points([*others[:2], *others[4:]]))


def test_what_goes_with_a_key():
    record = {
        "config_dirs": [],
        "overrides": [
            "clipping=1",
            "clip/x=1",
            "clip=2",
            "~clip.p",
            "optimizer.lr_end=0",
            "optimizer.lr=3",
        ],
    }
    said = variant(record, "seed=1", without=["clip", "optimizer.lr"])
    assert said == "mmrun train clipping=1 clip/x=1 optimizer.lr_end=0 seed=1"


def test_learning_rates_of_scopes_move_along():
    recorded(None, *MOMENTUM)
    record = json.loads((RUN / "run.json").read_text())
    record["config"]["optimizer"]["scopes"] = {"text": {"lr": 0.05}, "image": {"weight_decay": 0.1}}
    record["overrides"].append("optimizer.scopes.text.lr=0.05")
    changed(**record)
    controls = [words for label, words in lines() if label == "control"]
    strong = trials.controlled(suggest.suggest(RUN))
    assert len(controls) == len(strong) > 1
    for words, candidate in zip(controls, strong, strict=True):
        (settings,) = {json.dumps(point.config["optimizer"]) for point in points(words)}
        settings = json.loads(settings)
        assert settings["lr"] == pytest.approx(0.2 * candidate.coefficient, rel=0.005)
        assert settings["scopes"]["text"]["lr"] == pytest.approx(
            0.05 * candidate.coefficient, rel=0.005
        )


def test_thresholds_that_are_equal_are_given_once():
    recorded(np.full(30, 2.0))
    ((label, words), _) = lines()
    assert label == "sweep"
    assert "clip=none,2" in words  # nothing is above it: no coefficient, no control
    assert "control" not in notes()


@pytest.mark.parametrize("size", [3e-7, 1.0, 4567.8, 2e9])
def test_thresholds_of_any_size_compose(size: float):
    recorded(size * lengths())
    found = suggest.suggest(RUN).measured.everything.candidates
    asked = {point.config["clip"].get("threshold") for point in points(lines()[0][1])}
    assert asked == {None, *(each.threshold for each in found)}


def test_a_clipped_update_is_what_is_suggested_for():
    recorded(3 * lengths(), "optimizer.lr=0.003", column="update/norm")
    found = suggest.suggest(RUN)
    assert found.measured.everything.candidates == candidates(columns_of(RUN)["update/norm"])
    assert [scope.name for scope in found.measured.scopes] == ["image", "text"]
    assert advice.heading(found).startswith("norms of the update before clipping")
    assert "cancels" not in notes()
    for label, words in lines()[:2]:
        assert "clip.on=update" in words, label


def test_no_learning_rate_no_control():
    recorded()
    changed(config={"optimizer": {"_target_": "mine.Optimizer"}})
    assert "names no learning rate" in notes()
    assert [label for label, _ in lines()] == ["sweep", "then"]


@pytest.mark.trains
def test_printed_lines_run(capsys: pytest.CaptureFixture[str]):
    """On a real run, from one line to the next."""
    words = [*SMALL, "trainer.max_epochs=2", "clip=0.5", "optimizer=momentum", "name=a run"]
    assert cli.main(["train", *words]) == 0
    capsys.readouterr()
    assert cli.main(["suggest", "a run"]) == 0
    out = capsys.readouterr().out
    assert "over 8 steps" in out
    assert "all scopes" in out
    commands = [shlex.split(line)[2:] for line in out.splitlines()[-3:]]
    for line in commands:
        quick = ["trainer=smoke", "seeds=1"] if line[0] == "train" else []
        line = [word for word in line if not (quick and word.startswith(("seeds=", "trainer")))]
        assert cli.main([*line, *quick]) == 0
    table = capsys.readouterr().out.rpartition("optimizer.lr")[2]
    assert len([row for row in table.splitlines() if " none " in row]) >= 2  # it, and its control


# Formats and the terminal


def test_the_table():
    recorded()
    rows = [line.split() for line in suggest.text(suggest.suggest(RUN)).splitlines()]
    assert rows[2] == ["scope", "norm²", "p50", "p75", "p90", "p95", "p99"]
    found = suggest.suggest(RUN).measured.everything.candidates
    numbers = [f"{each.threshold:.15g}" for each in found]
    assert rows[3] == ["all", "scopes", "100", "%", "threshold", *numbers]
    assert rows[4][:8] == ["steps", "clipped", "50", "%", "25", "%", "10", "%"]
    assert rows[5][:2] == ["mean", "coefficient"]
    assert [float(each) for each in rows[5][2:]] == pytest.approx(
        [each.coefficient for each in found], abs=5e-4
    )
    assert rows[6][:3] == ["image", "64", "%"]


def test_a_terminal_of_80_columns():
    recorded(1e-4 * np.concatenate([np.full(50, 10.0), np.linspace(1.0, 2.0, 350)]), "clip=0.5")
    text = suggest.text(suggest.suggest(RUN), width=80)
    for line in text.splitlines():
        assert len(line) <= 80 or line.startswith(("sweep ", "control ", "then "))
    assert "\x1b" not in text
    assert "\x1b" in suggest.text(suggest.suggest(RUN), width=80, color=True)


def test_every_format_says_the_same():
    recorded()
    found = suggest.suggest(RUN)
    given = json.loads(suggest.text(found, format="json"))
    assert [line["command"] for line in given["commands"]] == [
        line for _, line in trials.commands(found)
    ]
    assert given["scopes"]["text"]["share"] == pytest.approx(0.36)
    rows = list(csv.DictReader(io.StringIO(suggest.text(found, format="csv"))))
    assert len(rows) == 15
    blocks = {suggest.EVERYTHING: given["all"], **given["scopes"]}
    for row in rows:
        block = blocks[row["scope"]]["candidates"][row["candidate"]]
        for key in ("threshold", "clipped", "coefficient"):
            assert float(row[key]) == block[key]
    markdown = suggest.text(found, format="md")
    assert "| all scopes | 100 % | threshold |" in markdown
    assert markdown.endswith("```")
    assert given["commands"][0]["command"] in markdown
    assert r"\toprule" in suggest.text(found, format="latex")
    with pytest.raises(UserError, match="no such format"):
        suggest.text(found, format="xml")


# Mistakes


def test_mistakes_are_told_in_a_line(capsys: pytest.CaptureFixture[str]):
    assert "there are no runs yet" in refused(capsys, "last")
    recorded()
    assert "no such run" in refused(capsys, "rum")
    assert "Did you mean run?" in refused(capsys, "rum")
    assert "no such format" in refused(capsys, "run", "--format", "xml")
    gradients = RUN / "gradients.csv"
    gradients.write_text("step,grad/norm\n")
    assert "has no rows (" in refused(capsys, "run")
    gradients.write_text("step,grad/norm\n1,0\n2,0\n")
    assert "grad/norm in gradients.csv is 0 (given: 2 rows)" in refused(capsys, "run")
    gradients.write_text("step,grad/norm\n1,nan\n")
    assert "no grad/norm in gradients.csv is finite" in refused(capsys, "run")
    gradients.write_text("epoch,loss\n1,2\n")
    assert "no column grad/norm (given: epoch, loss)" in refused(capsys, "run")
    gradients.write_bytes(b"\xff\x00\x1b[31m\n\xfe,\n")
    assert "no column grad/norm" in refused(capsys, "run")
    gradients.unlink()
    assert "no gradients.csv (" in refused(capsys, "run")
    (RUN / "run.json").write_text("{")
    assert "is not JSON" in refused(capsys, str(RUN))


@pytest.mark.parametrize("rows", ["none", "no file"])
def test_nothing_recorded_is_waited_for_only_while_it_can_come(
    rows: str, capsys: pytest.CaptureFixture[str]
):
    recorded(None, *MOMENTUM, "clip.record_every=1000", status="running")
    changed(pid=os.getpid(), host=os.uname().nodename)
    (RUN / "gradients.csv").write_text("step,grad/norm\n")
    if rows == "no file":
        (RUN / "gradients.csv").unlink()
    assert "yet" in (said := refused(capsys, "run"))
    assert "ask again after the first" in said
    for status in ("finished", "failed"):
        changed(status=status)
        said = refused(capsys, "run")
        assert "every 1000th step alone: train it with clip.record_every=1." in said
        assert "yet" not in said
        assert "ask again" not in said
    config = json.loads((RUN / "run.json").read_text())["config"]
    config["clip"]["record_every"] = 1
    changed(config=config)
    assert "failed). It ended before a step was recorded: mmrun show" in refused(capsys, "run")


def test_a_sweep_is_not_a_run(capsys: pytest.CaptureFixture[str]):
    for name in ("clip=none", "clip=0.5"):
        fake(Path("outputs/many") / name)
    Path("outputs/many/sweep.json").write_text("{}")
    said = refused(capsys, "many")
    assert "a sweep of 2 points" in said
    assert "many/clip=0.5" in said


def test_no_string_of_a_record_acts_upon_the_terminal():
    evil = "\x1b]0;owned\x07\r\n`$(x)"
    recorded(others={"grad/norm/x\x1b[31m": 0.01 * lengths()})
    changed(overrides=[f"name={evil}", f"x={evil}", f"clip.x={evil}"], choices={"clip": evil})
    for width in (None, 80):
        text = suggest.text(suggest.suggest(RUN), width=width)
        assert all(each.isprintable() for each in text.split("\n"))
    changed(config={"optimizer": {"lr": float("nan"), "scopes": [1]}}, overrides=[3, None])
    assert "names no learning rate" in suggest.text(suggest.suggest(RUN))


def test_the_verb():
    recorded()
    done = mmrun("suggest", "run", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert done.stdout == suggest.text(suggest.suggest(RUN), format="csv") + "\n"
    assert mmrun("suggest").stdout == mmrun("suggest", "last").stdout
