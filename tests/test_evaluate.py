"""A finished run, used again: scored under other conditions, asked for predictions, loaded."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mmrun
from mmrun import cli
from mmrun.build import build
from mmrun.compose import point
from mmrun.errors import UserError
from mmrun.evaluate import evaluate, predict, restore
from tests.running import SMALL, fit, record_of, write_arrays

OWN = {"left": ("vector", (4,)), "right": ("image", (1, 5, 5)), "words": ("text", (6,))}
OWN_WORDS = (
    "dataset=arrays",
    "dataset.root=own",
    "dataset.modalities={left:vector,right:image,words:text}",
    "logger=none",
    "trainer.max_steps=3",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """One run of generated data and one of own files, trained once for all tests."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_arrays(folder / "own", OWN)
        own = [f"dataset.root={folder / 'own'}", *OWN_WORDS[:1], *OWN_WORDS[2:]]
        out = f"outputs={folder / 'outputs'}"
        return {
            "small": fit(*SMALL, "trainer.max_epochs=2", "name=small", out),
            "own": fit(*own, "name=own", out) | {"root": folder / "own"},
        }


def inputs(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    return folder


def own_test(run: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.load(run["root"] / name / "test_data.npy") for name in OWN}


# Scores


@pytest.mark.trains
def test_the_recorded_scores_come_back(runs: dict[str, dict[str, Any]]):
    run = runs["small"]
    path, scores = evaluate(run["directory"], {})
    assert scores == run["test"]
    assert path == run["directory"] / "eval" / "test.json"
    assert json.loads(path.read_text())["test"] == scores


@pytest.mark.trains
def test_another_condition_is_scored_once_and_written_apart(runs: dict[str, dict[str, Any]]):
    directory = runs["small"]["directory"]
    before = (directory / "run.json").read_bytes()
    path, scores = evaluate(directory, {"missing.test_rate": 0.5})
    again = evaluate(directory, {"missing.test_rate": 0.5})
    assert again == (path, scores)
    assert scores["test/accuracy"] < runs["small"]["test"]["test/accuracy"]
    written = json.loads(path.read_text())
    assert path.name == "missing.test_rate=0.5.json"
    assert written["condition"] == {"missing.test_rate": 0.5}
    assert (directory / "run.json").read_bytes() == before


@pytest.mark.trains
def test_what_is_no_condition_is_refused(runs: dict[str, dict[str, Any]]):
    directory = runs["small"]["directory"]
    for changes, said in (
        ({"optimizer.lr": 1.0}, "no test condition"),
        ({"missing.tset_rate": 0.1}, "Did you mean missing.test_rate?"),
        ({"missing.test_rate": 2.0}, "a probability"),
        ({"missing.test_rate": "x"}, "wrong type"),
        ({"dataset.root": "x"}, "no setting dataset.root"),
    ):
        with pytest.raises(UserError) as raised:
            evaluate(directory, changes)
        assert said in str(raised.value)


@pytest.mark.trains
def test_the_verb_compares_with_what_was_recorded(
    runs: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
):
    run = runs["small"]
    assert cli.main(["eval", str(run["directory"]), "missing.test_rate=0.3"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["condition", "missing.test_rate=0.3"]
    assert f"as trained {run['test']['test/accuracy']:.4f}" in out
    assert cli.main(["eval", str(run["directory"])]) == 0
    out = capsys.readouterr().out
    assert f"test/accuracy    {run['test']['test/accuracy']:.4f}\n" in out


# Predictions


@pytest.mark.trains
@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_raw_files_give_the_scores_of_the_test(
    runs: dict[str, dict[str, Any]], suffix: str, tmp_path: Path
):
    """The same rows, read and scaled as at the test: files of the dataset's own form, prepared by it."""
    run = runs["own"]
    output = tmp_path / f"out{suffix}"
    n, absent = predict(run["directory"], inputs(tmp_path / "in", own_test(run)), output)
    assert (n, absent) == (9, ())
    with np.load(run["directory"] / "predictions.npz") as arrays:
        recorded = arrays["best"]
    if suffix == ".npz":
        with np.load(output) as arrays:
            np.testing.assert_allclose(arrays["scores"], recorded, atol=1e-6)
        return
    with output.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["sample", "class", "score/0", "score/1", "score/2"]
    assert [row[0] for row in rows] == [str(k) for k in range(9)]
    assert [int(row[1]) for row in rows] == recorded.argmax(1).tolist()
    np.testing.assert_allclose([[float(x) for x in row[2:]] for row in rows], recorded, atol=1e-5)


@pytest.mark.trains
def test_samples_that_the_dataset_serves_give_the_scores_of_the_test(
    runs: dict[str, dict[str, Any]], tmp_path: Path
):
    """A generated dataset has no raw form: what it serves goes in as it is."""
    run = runs["small"]
    dataset = build(point(run["overrides"]).config).dataset
    batch = dataset.split("test").batch(torch.arange(20))
    served = {name: values.numpy() for name, values in batch.inputs.items()}
    predict(run["directory"], inputs(tmp_path / "in", served), tmp_path / "out.npz")
    with (
        np.load(tmp_path / "out.npz") as new,
        np.load(run["directory"] / "predictions.npz") as old,
    ):
        np.testing.assert_allclose(new["scores"], old["best"][:20], atol=1e-6)


@pytest.mark.trains
def test_a_modality_without_a_file_is_missing(
    runs: dict[str, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = runs["own"]
    some = {name: values for name, values in own_test(run).items() if name != "right"}
    source = inputs(tmp_path / "in", some)
    words = ["predict", str(run["directory"]), "--input", str(source), "--output", "out.csv"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "no file for right: taken as missing" in out
    assert "9 predictions written to out.csv" in out


@pytest.mark.trains
@pytest.mark.parametrize("type_", [">f4", ">f8", "longdouble", "f2", ">i2", "u4"])
def test_numbers_of_any_type_are_read(type_: str, runs: dict[str, dict[str, Any]], tmp_path: Path):
    plain = {"left": np.arange(36).reshape(9, 4), "words": np.arange(54).reshape(9, 6) % 15}
    other = {name: values.astype(type_) for name, values in plain.items()}
    scores: list[np.ndarray] = []
    for name, arrays in (("plain", plain), ("other", other)):
        predict(runs["own"]["directory"], inputs(tmp_path / name, arrays), tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as file:
            scores.append(file["scores"])
    np.testing.assert_array_equal(scores[0], scores[1])


WRONG = {
    "nothing": ({}, "no input in this folder"),
    "shape": ({"left": np.zeros((9, 5))}, "left has the wrong shape"),
    "no sample": ({"left": np.zeros((0, 4))}, "left has the wrong shape"),
    "a number": ({"left": np.array(3.0)}, "left has the wrong shape"),
    "text": ({"left": np.array(["a", "b"])}, "inputs are numbers"),
    "objects": ({"left": np.array([{}, None])}, "no .npy file"),
    "not finite": ({"left": np.full((9, 4), np.nan)}, "not finite"),
    "archive": ({}, "no .npy file"),
    "torn archive": ({}, "no .npy file"),
    "too large": ({"left": np.full((9, 4), 1e300)}, "not finite"),
    "fractions of ids": ({"words": np.full((9, 6), 1.5)}, "ids that are no whole numbers"),
    "unknown id": ({"words": np.full((9, 6), 999)}, "ids that the model does not know"),
    "negative id": ({"words": np.full((9, 6), -1)}, "ids that the model does not know"),
    "lengths": (
        {"left": np.zeros((9, 4)), "right": np.zeros((8, 1, 5, 5))},
        "different numbers of samples",
    ),
}


@pytest.mark.trains
@pytest.mark.parametrize("case", WRONG)
def test_inputs_that_do_not_fit(runs: dict[str, dict[str, Any]], case: str, tmp_path: Path):
    arrays, said = WRONG[case]
    source = inputs(tmp_path / "in", arrays)
    if "archive" in case:
        with (source / "left.npy").open("wb") as file:
            np.savez(file, left=np.zeros((9, 4)))
            file.truncate(60 if case.startswith("torn") else None)
    with pytest.raises(UserError) as raised:
        predict(runs["own"]["directory"], source, tmp_path / "out.csv")
    assert said in str(raised.value)
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.trains
@pytest.mark.parametrize(
    ("source", "output", "said"),
    [
        ("in", "out.txt", "a .csv or .npz file"),
        ("in", "nowhere/out.csv", "no folder that exists"),
        ("nowhere", "out.csv", "--input is no folder"),
        ("in", "/proc/out.csv", "--output cannot be written"),
    ],
)
def test_folders_that_do_not_fit(
    runs: dict[str, dict[str, Any]], source: str, output: str, said: str, tmp_path: Path
):
    inputs(tmp_path / "in", own_test(runs["own"]))
    with pytest.raises(UserError) as raised:
        predict(runs["own"]["directory"], Path(source), Path(output))
    assert said in str(raised.value)


@pytest.mark.trains
@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_another_precision_gives_the_scores_of_the_test(precision: str, tmp_path: Path):
    """Computed and stored as in training: nothing is rounded on the way."""
    record = fit(*SMALL, "trainer.max_epochs=2", f"trainer.precision={precision}")
    directory = record["directory"]
    assert evaluate(directory, {})[1] == record["test"]
    batch = build(record["config"]).dataset.split("test").batch(torch.arange(64))
    served = {name: values.numpy() for name, values in batch.inputs.items()}
    predict(directory, inputs(tmp_path / "in", served), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as new, np.load(directory / "predictions.npz") as old:
        np.testing.assert_array_equal(new["scores"], old["best"][:64])
    kept = torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    for name, values in mmrun.load(directory).state_dict().items():
        assert values.dtype == kept[name].dtype
        assert torch.equal(values, kept[name]), name


# Loading


@pytest.mark.trains
def test_load_gives_the_best_weights_ready_for_use(
    runs: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    run = runs["small"]
    module = mmrun.load(run["directory"])
    assert not module.training
    saved = torch.load(run["directory"] / "checkpoints" / "best.ckpt", weights_only=True)
    for name, values in module.state_dict().items():
        assert torch.equal(values, saved["state_dict"][name]), name
    monkeypatch.chdir(run["directory"].parents[1])
    by_name = mmrun.load("small")
    assert by_name.state_dict().keys() == module.state_dict().keys()
    monkeypatch.chdir("/")
    monkeypatch.setenv("MMRUN_OUTPUTS", str(run["directory"].parent))
    assert mmrun.load("small").state_dict().keys() == module.state_dict().keys()


@pytest.mark.trains
def test_a_run_directory_is_not_trusted(runs: dict[str, dict[str, Any]], tmp_path: Path):
    """Its config may have been written by anybody."""
    record = record_of(runs["small"]["directory"])
    record["config"]["fusion"]["_target_"] = "subprocess.Popen"
    (tmp_path / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="outside the packages that are trusted"):
        restore(tmp_path)


# Prepare


@pytest.mark.trains
def test_arrays_prepare_as_they_serve(runs: dict[str, dict[str, Any]]):
    dataset = build(record_of(runs["own"]["directory"])["config"]).dataset
    served = dataset.split("test").batch(torch.arange(9)).inputs
    for name, raw in own_test(runs["own"]).items():
        prepared = dataset.prepare(name, torch.from_numpy(raw).reshape(served[name].shape))
        assert prepared.dtype == (torch.int64 if name == "words" else torch.float32)
        assert torch.equal(prepared, served[name])


@pytest.mark.parametrize("type_", [torch.float64, torch.int16, torch.uint8])
def test_by_itself_a_dataset_only_casts(type_: torch.dtype):
    dataset = build(point(["dataset.train_share=0.1", "dataset.views=1"]).config).dataset
    values = torch.ones(2, 3, dtype=type_)
    assert dataset.prepare("image", values).dtype == torch.float32
    assert dataset.prepare("text", values).dtype == torch.int64
    assert torch.equal(dataset.prepare("audio", values), torch.ones(2, 3))
