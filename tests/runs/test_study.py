"""study.journal read without Optuna says what Optuna says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from mmrun.errors import UserError
from mmrun.runs.layout import STUDY
from mmrun.runs.study import AGAIN, METRIC, POINTS, REASON, read_study
from tests.running import run_python

SPACE = {
    "lr": FloatDistribution(1e-4, 1, log=True),
    "layers": IntDistribution(1, 9, step=2),
    "fusion": CategoricalDistribution(("sum", "concat", "0.5")),
}
STATES = {"RUNNING": "running", "COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def make(folder: Path, direction: Any = "maximize") -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / STUDY)))
    sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(
        storage=storage, study_name="s", direction=direction, sampler=sampler
    )


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_it_says_what_optuna_says(tmp_path: Path, direction: str):
    study = make(tmp_path, direction)
    study.set_user_attr(METRIC, "val/accuracy")
    for number in range(12):
        asked = study.ask(SPACE)  # Optuna's own way: parameters one by one
        if number % 3:
            for step in range(1, 4):
                asked.report(number + step / 7, step)
        asked.set_user_attr(POINTS, [f"id{number}", "x"])
        if number % 4 == 0:
            study.tell(asked, number / 7)
        elif number % 4 == 1:
            study.tell(asked, state=TrialState.PRUNED)
        elif number % 4 == 2:
            asked.set_user_attr(REASON, "diverged: so it did")
            study.tell(asked, state=TrialState.FAIL)
    params = {"lr": 0.1234, "layers": 5, "fusion": "0.5"}
    attributes = {POINTS: ["a"], AGAIN: 2}
    study.add_trial(  # ours: all at once
        create_trial(
            state=TrialState.RUNNING, params=params, distributions=SPACE, user_attrs=attributes
        )
    )
    known = read_study(tmp_path)
    assert (known.name, known.metric, known.maximize) == (
        *("s", "val/accuracy"),
        direction == "maximize",
    )
    assert len(known.trials) == 13
    for ours, theirs in zip(known.trials, study.trials, strict=True):
        assert ours.number == theirs.number
        assert ours.state == STATES[theirs.state.name]
        assert ours.params == theirs.params
        assert {k: type(v) for k, v in ours.params.items()} == {
            k: type(v) for k, v in theirs.params.items()
        }
        assert ours.value == theirs.value
        assert ours.intermediate == theirs.intermediate_values
        assert list(ours.points) == theirs.user_attrs[POINTS]
        assert ours.reason == theirs.user_attrs.get(REASON)
        assert ours.again == theirs.user_attrs.get(AGAIN)
        assert (ours.ended is None) == (theirs.datetime_complete is None)
    assert known.best is not None
    assert known.best.number == study.best_trial.number


def test_a_torn_line_did_not_happen(tmp_path: Path):
    study = make(tmp_path)
    for value in (1.0, 2.0):
        study.tell(study.ask(SPACE), value)
    path = tmp_path / STUDY
    whole = path.read_bytes()
    known = read_study(tmp_path)
    lines = whole.splitlines(keepends=True)
    for cut in range(1, len(lines[-1])):
        path.write_bytes(whole[:-cut])
        torn = read_study(tmp_path)
        assert torn.trials[0] == known.trials[0]
        assert (torn.trials[1].state, torn.trials[1].value) == ("running", None)
        assert torn.best == known.trials[0]
    path.write_bytes(b"")
    assert read_study(tmp_path).trials == ()


def test_what_is_none_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="there is no study"):
        read_study(tmp_path)
    for text in ("junk\n", "[]\n", '{"op_code": 6, "trial_id": 0, "state": 1}\n', "{}\n"):
        (tmp_path / STUDY).write_text(text)
        with pytest.raises(UserError, match="this study cannot be read"):
            read_study(tmp_path)


def test_optuna_is_not_needed(tmp_path: Path):
    study = make(tmp_path)
    study.tell(study.ask(SPACE), 1.0)
    ran = run_python(
        "-c",
        "import sys; from pathlib import Path; from mmrun.runs.study import read_study;"
        f"assert read_study(Path({str(tmp_path)!r})).best.value == 1;"
        "assert not {'optuna', 'numpy', 'torch'} & set(sys.modules)",
    )
    assert ran.returncode == 0, ran.stderr


def test_codes_are_optunas():
    from optuna.storages.journal._storage import JournalOperation

    from mmrun.runs import study as ours

    names = {
        "CREATE_STUDY": ours.CREATE_STUDY,
        "SET_STUDY_USER_ATTR": ours.STUDY_ATTR,
        "CREATE_TRIAL": ours.CREATE_TRIAL,
        "SET_TRIAL_PARAM": ours.PARAM,
        "SET_TRIAL_STATE_VALUES": ours.STATE,
        "SET_TRIAL_INTERMEDIATE_VALUE": ours.INTERMEDIATE,
        "SET_TRIAL_USER_ATTR": ours.ATTR,
    }
    assert {name: cast("int", JournalOperation[name].value) for name in names} == names
    assert {state.name: state.value for state in TrialState} == {
        **{name: ours.STATES.index(word) for name, word in STATES.items()},
        "WAITING": 4,
    }
