"""Trials chosen on the way: none lost, none counted twice, whatever happens to the driver; pruned, failed and repeated ones."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mmrun import cli, compose
from mmrun.compose.space import Space
from mmrun.errors import UserError
from mmrun.launch import loop, trials
from mmrun.launch.loop import Outcome
from mmrun.runs import reader
from mmrun.runs.ledger import read_ledger
from mmrun.runs.study import Study as Known
from mmrun.runs.study import Trial, read_study
from mmrun.signals import Interrupted
from tests.launch.fakes import LOG, Fake, killed_at, quadratic
from tests.running import SMALL, record_of, run_python

OUTPUTS = Path("outputs")
SWEEP = OUTPUTS / "s"
SPAN = ("clip=norm,value", "clip.threshold=tag(log,interval(0.01,10))")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmrun.launch.work.LOOK_S", 0)
    monkeypatch.setattr("mmrun.launch.running.LOOK_S", 0)


class Pressed(Fake):
    """Ctrl-C while a point runs, by its number from 1."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def poll(self, handle: Path) -> Any:
        if len(self.submitted) == self.number:
            raise Interrupted(2)
        return super().poll(handle)


def space(*words: str) -> Space:
    found = compose.sweep((*SMALL, "sweeper=optuna", "sweep=s", *words))
    assert isinstance(found, Space)
    return found


def drive(executor: Fake, *words: str, said: list[str] | None = None) -> Outcome:
    lines = [] if said is None else said
    outcome = loop.drive(space(*words), OUTPUTS, executor, say=lines.append)
    lines += outcome.trials
    return outcome


def study() -> Known:
    return read_study(SWEEP)


def chosen(known: Known) -> list[Mapping[str, Any]]:
    return [trial.params for trial in known.trials]


def check(known: Known, wanted: int) -> None:
    """Every trial has ended, its points are there, and its value is the mean of theirs."""
    assert len(known.trials) == wanted
    ledger = read_ledger(SWEEP)
    records = {reader.read(run)["id"]: reader.read(run) for run in reader.list_runs(SWEEP)}
    assert len(records) == len(reader.list_runs(SWEEP))
    for trial in known.trials:
        assert trial.state == "complete"
        found = [records[id] for id in trial.points]
        assert {record["status"] for record in found} == {"finished"}
        best = [quadratic(record["config"])[0][1] for record in found]
        assert trial.value == pytest.approx(sum(best) / len(best), rel=1e-12)
        assert set(trial.points) <= set(ledger.points)
        assert all(
            r["config"]["clip"]["threshold"] == trial.params["clip.threshold"] for r in found
        )
    ends = LOG.read_text().splitlines()
    assert sorted(ends) == sorted({run.name for run in reader.list_runs(SWEEP)})


def test_trials_are_chosen_trained_and_told():
    said: list[str] = []
    fake = Fake(slots=1)
    outcome = drive(fake, *SPAN, "seeds=2", "sweeper.trials=12", said=said)
    known = study()
    check(known, 12)
    assert outcome.exit_code == 0
    assert len(outcome.records) == 24
    assert (known.metric, known.maximize) == ("val/loss", False)
    assert all(list(trial.intermediate) == [1, 2, 3] for trial in known.trials)
    best = min(known.trials, key=lambda trial: (trial.value, trial.number))
    assert known.best == best
    assert f"best     trial {best.number}: val/loss" in "\n".join(said)
    assert all(any(line.strip() == run.name for line in said) for run in folders(best))
    assert fake.submitted[:2] == [
        f"clip={known.trials[0].params['clip']},"
        f"clip.threshold={known.trials[0].params['clip.threshold']:.15g},seed={seed}"
        for seed in (0, 1)
    ]


def folders(trial: Trial) -> list[Path]:
    return [run for run in reader.list_runs(SWEEP) if reader.read(run)["id"] in trial.points]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_same_command_chooses_the_same_and_another_seed_others(sampler: str):
    found: list[list[Mapping[str, Any]]] = []
    for name, seed in [("s", 0), ("t", 0), ("u", 1)]:
        words = [*SPAN, f"sweeper.sampler={sampler}", "sweeper.trials=14", f"sweeper.seed={seed}"]
        made = compose.sweep((*SMALL, "sweeper=optuna", f"sweep={name}", *words))
        loop.drive(made, OUTPUTS, Fake(), say=lambda _: None)
        found.append(chosen(read_study(OUTPUTS / name)))
    assert found[0] == found[1]
    assert len({str(each) for each in found[0]}) > 10
    assert found[2][0] != found[0][0]


def test_the_samplers_differ_once_there_is_something_to_learn_from():
    drive(Fake(), *SPAN, "sweeper.trials=14")
    tpe = chosen(study())
    made = compose.sweep((*SMALL, "sweeper=random", "sweep=r", *SPAN, "sweeper.trials=14"))
    loop.drive(made, OUTPUTS, Fake(), say=lambda _: None)
    by_chance = chosen(read_study(OUTPUTS / "r"))
    assert tpe[:10] == by_chance[:10]
    assert tpe[11:] != by_chance[11:]


def test_more_trials_go_on_where_fewer_have_ended():
    drive(Fake(), *SPAN, "sweeper.trials=13")
    whole = chosen(study())
    for count in (3, 3, 11, 13):
        made = compose.sweep(
            (*SMALL, "sweeper=optuna", "sweep=t", *SPAN, f"sweeper.trials={count}")
        )
        loop.drive(made, OUTPUTS, Fake(), say=lambda _: None)
        assert chosen(read_study(OUTPUTS / "t")) == whole[:count]


def test_a_free_slot_gets_a_new_trial_at_once_and_they_differ():
    lengths = iter([1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1])

    def uneven(config: Mapping[str, Any]) -> tuple[list[float], str]:
        return [quadratic(config)[0][1]] * next(lengths), "finished"

    class Watched(Fake):
        beside = 0

        def submit(self, jobs: Any) -> Any:
            self.beside += any(len(values) == 9 for values, _ in self.busy.values())
            return super().submit(jobs)

    fake = Watched(uneven, slots=2)
    drive(fake, *SPAN, "sweeper.trials=15")
    assert fake.most == 2
    assert fake.beside >= 6  # while the long one ran, others came and went
    known = study()
    check(known, 15)
    assert len({str(params) for params in chosen(known)}) == 15


def test_parallel_trials_of_tpe_differ():
    drive(Fake(), *SPAN, "sweeper.trials=12")
    fake = Fake(slots=8)
    drive(fake, *SPAN, "sweeper.trials=20")
    last = [trial.params["clip.threshold"] for trial in study().trials[12:]]
    assert fake.most == 8
    assert len(set(last)) == 8


# Kills


def test_no_trial_is_lost_or_counted_twice_wherever_the_driver_is_killed():
    """Killed at every write in turn, each time in another sweep; it chooses as if nothing had happened."""
    words = (*SPAN, "seeds=2", "sweeper.trials=2")
    made = space(*words)
    loop.drive(made, Path("whole"), Fake(), say=lambda _: None)
    whole = read_study(Path("whole/s"))
    count = 0
    while True:
        count += 1
        outputs = Path(f"kill {count}")
        LOG.unlink(missing_ok=True)

        def work(outputs: Path = outputs) -> None:
            loop.drive(made, outputs, Fake(), say=lambda _: None)

        killed = killed_at(count, work)
        if not killed:
            break
        work()
        again = read_study(outputs / "s")
        assert chosen(again) == chosen(whole), f"killed at write {count}"
        assert [t.value for t in again.trials] == [t.value for t in whole.trials]
        assert [t.state for t in again.trials] == ["complete"] * 2
        assert [t.points for t in again.trials] == [t.points for t in whole.trials]
        assert len(set(LOG.read_text().splitlines())) == 4
        assert {reader.read(run)["status"] for run in reader.list_runs(outputs / "s")} == {
            "finished"
        }
        assert len(read_ledger(outputs / "s").points) == 4
    assert count > 20


def test_random_kills_with_slots_pruning_failures_and_resuming():
    """Whatever came before, in the end every trial has ended once, and no point was trained twice to its end."""

    def law(config: Mapping[str, Any]) -> tuple[list[float], str]:
        values, status = quadratic(config)
        return values, "diverged" if config["clip"]["threshold"] > 5 else status

    words = (*SPAN, "seeds=2", "sweeper.trials=15", "sweeper.pruner=median", "sweeper.startup=3")
    made = space(*words)
    dice = random.Random(0)
    kills = 0
    while kills < 40:
        if not killed_at(
            dice.randint(1, 25), lambda: loop.drive(made, OUTPUTS, Fake(law, slots=3), say=print)
        ):
            break
        kills += 1
    loop.resume(SWEEP, Fake(law, slots=3), say=lambda _: None)
    known = study()
    assert kills >= 8
    assert len(known.trials) == 15
    assert {trial.state for trial in known.trials} == {"complete", "pruned", "failed"}
    for trial in known.trials:
        assert trial.state in (
            ("failed", "pruned") if trial.params["clip.threshold"] > 5 else ("complete", "pruned")
        )
    ends = LOG.read_text().splitlines()
    assert len(ends) == len(set(ends))
    statuses = {reader.read(run)["status"] for run in reader.list_runs(SWEEP)}
    assert statuses <= {"finished", "diverged", "pruned", "killed"}
    before = (SWEEP / "study.journal").read_bytes()
    drive(Fake(law), *words)  # there is nothing left to do
    assert (SWEEP / "study.journal").read_bytes() == before


def test_an_interrupted_trial_goes_on():
    words = (*SPAN, "seeds=3", "sweeper.trials=3")
    with pytest.raises(Interrupted) as caught:
        drive(Pressed(4), *words)
    assert any("1 of 3 trials are done; continue: " in note for note in caught.value.__notes__)
    assert [trial.state for trial in study().trials] == ["complete", "running"]
    fake = Fake()
    loop.resume(SWEEP, fake, say=lambda _: None)
    check(study(), 3)
    assert len(fake.submitted) == 6


@pytest.mark.parametrize(
    ("before", "after"), [((), ("seeds=3",)), (("seeds=3",), ()), (("seed=4",), ("seed=5",))]
)
def test_a_trial_goes_on_with_the_seeds_that_it_began_with(
    before: tuple[str, ...], after: tuple[str, ...]
):
    with pytest.raises(Interrupted):
        drive(Pressed(1), *SPAN, "sweeper.trials=2", *before)
    drive(Fake(), *SPAN, "sweeper.trials=2", *after)
    check(study(), 2)
    seeds = [sorted(reader.read(run)["seed"] for run in folders(t)) for t in study().trials]
    of = {(): [0], ("seeds=3",): [0, 1, 2], ("seed=4",): [4], ("seed=5",): [5]}
    assert seeds == [of[before], of[after]]


def test_mending_cuts_what_is_torn_and_nothing_else(tmp_path: Path):
    path = tmp_path / "study.journal"
    for text, left in [
        (b"", b""),
        (b'{"a":1}\n', b'{"a":1}\n'),
        (b'{"a":1}\n{"b', b'{"a":1}\n'),
        (b'{"a', b""),
        (b'{"a":1}\n\0\0\0\n', b'{"a":1}\n'),
        (b'{"a":1}\n{"b":2}\n\0\0', b'{"a":1}\n{"b":2}\n'),
    ]:
        path.write_bytes(text)
        trials.mend(path)
        assert path.read_bytes() == left
    trials.mend(tmp_path / "none")


# Endings


def test_a_bad_trial_is_pruned_and_its_other_points_are_not_made():
    def law(config: Mapping[str, Any]) -> tuple[list[float], str]:
        off = abs(math.log(config["clip"]["threshold"] / 0.5))
        return [off + 1 / step for step in range(1, 11)], "finished"

    words = [*SPAN, "seeds=2", "sweeper.trials=12", "sweeper.pruner=median"]
    said: list[str] = []
    drive(Fake(law, slots=2), *words, "sweeper.startup=4", "sweeper.warmup=3", said=said)
    known = study()
    pruned = [trial for trial in known.trials if trial.state == "pruned"]
    assert len(pruned) >= 2
    assert {trial.state for trial in known.trials} == {"pruned", "complete"}
    for trial in pruned:
        assert 3 <= len(trial.intermediate) < 10
        records = [reader.read(run) for run in folders(trial)]
        assert "pruned" in {record["status"] for record in records}
        assert {(r["stopped_by"]) for r in records if r["status"] == "pruned"} == {"pruned"}
        ended_before = [
            t for t in known.trials if t.state == "complete" and str(t.ended) < str(trial.ended)
        ]
        assert len(ended_before) >= 4
        at = max(trial.intermediate)
        better = sorted(t.intermediate[at] for t in ended_before)
        assert min(trial.intermediate.values()) > better[len(better) // 2 - 1]
    assert f"{len(pruned)} pruned" in "\n".join(said)


def test_where_points_come_one_by_one_the_first_seed_decides():
    def law(config: Mapping[str, Any]) -> tuple[list[float], str]:
        return [float(config["clip"]["threshold"])] * 4, "finished"

    words = [*SPAN, "seeds=3", "sweeper.trials=12", "sweeper.pruner=asha", "sweeper.startup=2"]
    drive(Fake(law), *words, "sweeper.warmup=2")
    for trial in study().trials:
        made = len(folders(trial))
        assert made == (3 if trial.state == "complete" else 1)
        assert trial.state == "complete" or trial.number >= 2
    assert sum(trial.state == "pruned" for trial in study().trials) >= 3


def test_a_validation_counts_when_all_points_that_run_have_reached_it():
    class Slow(Fake):
        """The second seed is a validation behind."""

        def poll(self, handle: Path) -> Any:
            behind = "seed=1" in handle.name and not hasattr(self, "went")
            self.went = True
            return None if behind else super().poll(handle)

    drive(Slow(slots=2), *SPAN, "seeds=2", "sweeper.trials=1")
    (trial,) = study().trials
    off = (trial.params["clip.threshold"] - 0.5) ** 2 + 0.005
    for step, part in zip((1, 2, 3), (1, 0.25, 0.5), strict=True):
        assert trial.intermediate[step] == pytest.approx(off + part, rel=1e-6)


@pytest.mark.parametrize("ending", ["diverged", "failed", "nan", "killed"])
def test_a_point_without_a_value_fails_its_trial_and_no_other(ending: str):
    def law(config: Mapping[str, Any]) -> tuple[Sequence[float], str]:
        values, _ = quadratic(config)
        if config["clip"]["threshold"] < 1:
            return values, "finished"
        return ([math.nan] * 3, "finished") if ending == "nan" else (values, ending)

    said: list[str] = []
    fake = Fake(law)
    outcome = drive(fake, *SPAN, "seeds=2", "sweeper.trials=8", said=said)
    known = study()
    failed = [trial for trial in known.trials if trial.state == "failed"]
    assert 2 <= len(failed) < 8
    for trial in known.trials:
        assert (trial.state == "failed") == (trial.params["clip.threshold"] >= 1)
        assert len(folders(trial)) == (1 if trial.state == "failed" else 2)
    reason = "not finite: val/loss is nan" if ending == "nan" else f"{ending}: it says so"
    assert {trial.reason for trial in failed} == {reason}
    assert f"{len(failed)} failed" in "\n".join(said)
    assert outcome.exit_code == int(ending in ("failed", "killed"))


def test_what_failed_for_another_reason_than_its_values_is_tried_again():
    first = True

    def law(config: Mapping[str, Any]) -> tuple[Sequence[float], str]:
        values, _ = quadratic(config)
        bad = config["clip"]["threshold"] >= 1
        return values, "failed" if bad and first else "diverged" if bad else "finished"

    words = (*SPAN, "sweeper.trials=8")
    drive(Fake(law), *words)
    failed = [trial for trial in study().trials if trial.state == "failed"]
    first = False
    said: list[str] = []
    fake = Fake(law)
    drive(fake, *words, said=said)
    known = study()
    assert len(fake.submitted) == len(failed) >= 2
    assert [trial.again for trial in known.trials[8:]] == [trial.number for trial in failed]
    assert [trial.params for trial in known.trials[8:]] == [trial.params for trial in failed]
    assert {str(trial.reason) for trial in known.trials[8:]} == {"diverged: it says so"}
    assert f"{len(failed)} to try again" in "\n".join(said)
    fake = Fake(law)
    drive(fake, *words)  # a divergence is a result
    assert fake.submitted == []


def test_where_everything_fails_it_stops():
    said: list[str] = []
    fake = Fake(lambda config: (quadratic(config)[0], "failed"))
    outcome = drive(fake, *SPAN, "sweeper.trials=40", said=said)
    assert len(study().trials) == 10
    assert "stopped  no other trial is begun: all of the first 10 failed" in said
    assert outcome.exit_code == 1


def test_equal_values_take_the_result_that_is_there():
    said: list[str] = []
    fake = Fake(slots=3)
    words = ("clip=0.1,0.5", "seeds=2", "sweeper.sampler=random", "sweeper.trials=20")
    drive(fake, *words, said=said)
    known = study()
    check_same = {str(trial.params): trial.value for trial in known.trials}
    assert len(known.trials) == 20
    assert all(trial.value == check_same[str(trial.params)] for trial in known.trials)
    assert sorted(fake.submitted) == sorted(set(fake.submitted))
    assert len(fake.submitted) == 4


def test_points_of_a_grid_in_the_same_folder_are_taken():
    grid = compose.sweep((*SMALL, "sweep=s", "clip=0.1,0.5"))
    loop.drive(grid, OUTPUTS, Fake(), say=lambda _: None)
    fake = Fake()
    drive(fake, "clip=0.1,0.5", "sweeper.trials=6")
    assert fake.submitted == []
    assert len(study().trials) == 6


def test_values_that_do_not_go_together_fail_their_trial(monkeypatch: pytest.MonkeyPatch):
    made = space(*SPAN, "sweeper.trials=6")
    points_of = Space.points_of

    def refuse(self: Space, values: Mapping[str, Any], seeds: Any = None) -> Any:
        if values["clip"] == "value":
            raise UserError("these do not go together")
        return points_of(self, values, seeds)

    monkeypatch.setattr(Space, "points_of", refuse)
    loop.drive(made, OUTPUTS, Fake(), say=lambda _: None)
    assert {t.params["clip"]: t.state for t in study().trials} == {
        "value": "failed",
        "norm": "complete",
    }
    assert {t.reason for t in study().trials if t.state == "failed"} == {
        "refused: these do not go together"
    }


# Mistakes


def test_a_metric_that_there_is_not_ends_it_and_another_one_begins_anew():
    with pytest.raises(UserError, match=r"no such metric.*val/loss"):
        drive(Fake(), *SPAN, "sweeper.metric=val/los", "sweeper.trials=2")
    drive(Fake(), *SPAN, "sweeper.metric=loss", "sweeper.trials=2")
    assert [trial.state for trial in study().trials] == ["complete"] * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sweeper.direction=maximize",), "is to minimize val/loss"),
        (("sweeper.metric=val/mae",), "is of val/loss"),
        (("trainer.max_epochs=2",), "another config"),
        (("fusion=sum,concat",), "another config, or span other keys"),
    ],
)
def test_a_study_of_another_question_is_left_alone(words: tuple[str, ...], expected: str):
    drive(Fake(), *SPAN, "sweeper.trials=1")
    before = (SWEEP / "study.journal").read_bytes()
    with pytest.raises(UserError, match=expected):
        drive(Fake(), *SPAN, *words, "sweeper.trials=2")
    assert (SWEEP / "study.journal").read_bytes() == before


def test_bounds_can_change_and_choices_cannot():
    drive(Fake(), *SPAN, "sweeper.trials=12")
    drive(Fake(), SPAN[0], "clip.threshold=tag(log,interval(0.1,3))", "sweeper.trials=16")
    assert all(0.1 <= t.params["clip.threshold"] <= 3 for t in study().trials[12:])
    with pytest.raises(UserError, match="other values of clip "):
        drive(Fake(), "clip=norm,value,ema", SPAN[1], "sweeper.trials=16")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("sweeper.metric=test/accuracy", "validation alone.*val/accuracy"),
        ("sweeper.trials=0", "sweeper.trials is 1 or more"),
        ("sweeper.reduction=1", "sweeper.reduction is 2 or more"),
        ("sweeper.sampler=nope", "sweeper.sampler cannot be this"),
        ("sweeper.trials=many", "sweeper.trials has the wrong type"),
        ("sweeper.nope=1", "sweeper has no key nope"),
        ("sweeper._target_=os.path.join", "sweeper._target_"),
        ("sweeper._target_=mmrun.launch.inline.Inline", "sweeper._target_ is no Study"),
    ],
)
def test_settings_are_checked_before_anything_exists(word: str, expected: str):
    with pytest.raises(UserError, match=expected):
        drive(Fake(), *SPAN, word)
    assert not OUTPUTS.exists()


def test_a_journal_that_is_none_is_named():
    drive(Fake(), *SPAN, "sweeper.trials=2")
    journal = SWEEP / "study.journal"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], b"{junk", *lines[1:]]))
    with pytest.raises(UserError, match=r"cannot be read.*study.journal"):
        drive(Fake(), *SPAN, "sweeper.trials=3")


def test_without_optuna_it_says_how_to_get_it():
    ran = run_python(
        "-c",
        "import sys; sys.modules['optuna'] = None; from mmrun import cli;"
        "sys.exit(cli.main(['train', 'dataset=synthetic', 'sweeper=optuna', 'clip=0.1,1']))",
    )
    assert ran.returncode == 2
    assert "needs Optuna" in ran.stderr
    assert "pip install 'mmrun[optuna]'" in ran.stderr
    assert not OUTPUTS.exists()


def test_configs_that_changed_under_a_trial_are_seen(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Interrupted):
        drive(Pressed(1), *SPAN, "sweeper.trials=2")
    points_of = Space.points_of

    def changed(self: Space, values: Mapping[str, Any], seeds: Any = None) -> Any:
        points = points_of(self, values, seeds)
        for point in points:
            point.config["optimizer"]["lr"] = 0.123
        return points

    monkeypatch.setattr(Space, "points_of", changed)
    with pytest.raises(UserError, match="trial 0 chose means something else"):
        drive(Fake(), *SPAN, "sweeper.trials=2")


def test_cancelling_leaves_trials_to_go_on_with():
    class Cancelled(Fake):
        def poll(self, handle: Path) -> Any:
            if len(self.submitted) == 3:
                (SWEEP / "cancel").touch()
                return None
            return super().poll(handle)

    drive(Cancelled(), *SPAN, "seeds=2", "sweeper.trials=4")
    assert [trial.state for trial in study().trials] == ["complete", "running"]
    loop.resume(SWEEP, Fake(), say=lambda _: None)
    check(study(), 4)


# For real


@pytest.mark.trains
def test_a_real_sweep_is_quiet_and_resumes(capfd: pytest.CaptureFixture[str]):
    words = ["train", *SMALL, "trainer.max_epochs=2", "launcher=inline", "sweep=s", *SPAN]
    words += ["sweeper=optuna", "seeds=2", "sweeper.metric=accuracy"]
    assert cli.main([*words, "sweeper.trials=2"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    known = study()
    assert known.maximize
    for trial in known.trials:
        best = [record_of(run)["metrics"]["val/accuracy"]["max"] for run in folders(trial)]
        assert trial.value == pytest.approx(sum(best) / 2)
        assert len(trial.intermediate) == 2
    assert "trials   2 complete" in captured.out
    assert cli.main([*words, "sweeper.trials=3"]) == 0
    assert "trials   2 complete, 1 to come, 2 points each" in capfd.readouterr().out
    assert cli.main(["resume", "s"]) == 0
    assert len(study().trials) == 3
    assert len(reader.list_runs(SWEEP)) == 6


@pytest.mark.trains
def test_a_real_point_that_diverges_is_a_failed_trial():
    words = ["train", *SMALL, "trainer.max_epochs=2", "launcher=inline", "sweep=s"]
    words += ["sweeper=random", "optimizer.lr=0.01,1e30", "sweeper.trials=6", "clip=none"]
    assert cli.main(words) == 0
    states = {trial.params["optimizer.lr"]: trial.state for trial in study().trials}
    assert states == {"0.01": "complete", "1e+30": "failed"}
    assert len(reader.list_runs(SWEEP)) == 2
