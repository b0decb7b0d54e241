"""A mistake on the command line: exit 2, one message that names it and the way out, nothing created."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mmrun import cli
from mmrun.checkpoint import read_checkpoint
from mmrun.errors import LONGEST, UserError, described, nearest, printable, shortened
from mmrun.evaluate import restore
from tests.running import SMALL, fit, write_arrays

# What is typed after ``mmrun train`` -> what the message must say.
MISTAKES = {
    "fusion=atention": ("no fusion called atention", "Did you mean attention?"),
    "fusoin=concat": ("no key fusoin", "Did you mean fusion?"),
    "fusion=": ("no fusion called nothing", "attention, concat"),
    "lr=0.1": ("no key lr", "Did you mean optimizer.lr?"),
    "max_epochs=3": ("Did you mean trainer.max_epochs?",),
    "optimizer.lrr=0.1": ("optimizer has no key lrr", "Did you mean lr?"),
    "optimizer.lr=abc": ("optimizer.lr has the wrong type", "'abc'", "It takes a number."),
    "optimizer.lr=": ("optimizer.lr has the wrong type",),
    "optimizer.lr=[1,2]": ("optimizer.lr has the wrong type",),
    "optimizer.lr=-1": ("optimizer cannot be built", "Invalid learning rate"),
    "optimizer.lr=nan": ("optimizer.lr is not a number",),
    "optimizer.lr=inf": ("optimizer.lr must be finite",),
    "optimizer.lr=${nope}": ("optimizer.lr", "'nope' not found"),
    "optimizer.lr=1 optimizer.lr=2": ("optimizer.lr is given twice", "optimizer.lr=2"),
    "optimizer.scopes.nope.lr=1": ("no scope nope", "image"),
    "optimizer.scopes.text.lr=inf": ("optimizer.scopes.text.lr must be finite",),
    "optimizer.scopes.text=3": ("optimizer.scopes.text is a mapping",),
    "clip=": ("no clip called nothing", "A threshold works too"),
    "clip=0": ("clip.threshold must be a number above 0",),
    "clip=-1": ("clip.threshold must be a number above 0", "-1"),
    "clip=nan": ("clip.threshold is not a number",),
    "clip=value_-2": ("clip.threshold must be a number above 0",),
    "clip=none_0.5": ("none has no threshold", "Write none."),
    "clip=centralize_p90": ("centralize has no threshold",),
    "-m clip=0.5,none_0.5": ("none has no threshold",),
    "clip.scopes=[]": ("clip.scopes is a mapping, not a list", "clip.scopes.audio=value_0.1"),
    "clip.scopes=5": ("clip.scopes is a mapping",),
    "clip=nope_0.5": ("no clip called nope_0.5",),
    "clip=norm clip.threshold=abc": ("clip.threshold is a number", "percentile such as p90"),
    "clip=norm clip.threshold=-2": ("clip.threshold must be a number above 0",),
    "clip=norm clip.per=modalit": ("clip.per", "global or modality or tensor"),
    "clip.threshold=1": ("clip has no key threshold", "It is a key of clip=adaclip, clip=adagc"),
    "clip=0.5,1": ("clip has several values", "mmrun train -m"),
    "clip={threshold: 1}": ("clip has no key threshold",),
    "~clip": ("clip is always there",),
    "~clip.record_every": ("clip.record_every cannot be taken away",),
    "~optimizer.lr": ("optimizer.lr cannot be taken away",),
    "encoder=cnn": ("per modality", "encoder/MODALITY=OPTION"),
    "encoder.image=cnn": ("encoder.image is a mapping", "encoder/image=OPTION"),
    "encoder/text=cnn": ("image or spectrogram", "modality text is text", "lstm"),
    "encoder/nope=cnn": ("no modality nope", "audio, image, text"),
    "encoder/image/x=cnn": ("no modality image/x",),
    "dataset.use=nope": ("no modality nope", "audio, image, text"),
    "dataset.use=[image,nope]": ("no modality nope",),
    "dataset.use=[]": ("dataset.use names modalities",),
    "dataset=arrays": ("none is given", "dataset.root=FOLDER"),
    "dataset=arrays dataset.root=nowhere": ("dataset.root does not exist", "nowhere"),
    "dataset.batch_size=0": ("dataset.batch_size", "1 or more, or all"),
    "dataset.views=0": ("dataset.views is out of range",),
    "dataset._target_=os.system": ("dataset._target_ cannot be loaded", "os.system"),
    "fusion._target_=builtins.dict": ("fusion._target_ is no Fusion",),
    "fusion._target_=mmrun.clip.norm.Norm": ("fusion._target_ is no Fusion",),
    "fusion._target_=mmrun.nope.X": ("cannot be loaded", "mmrun.nope"),
    "objective=regression": ("value targets", "target: class"),
    "objective.hidden=[a]": ("objective.hidden", "a list of integers"),
    "model.feature_clip=-1": ("model.feature_clip is a bound", "such as p99"),
    "model.feature_clip=p": ("model.feature_clip is a bound", "given: p"),
    "model.feature_clip=p0": ("model.feature_clip is a bound", "given: p0"),
    "model.gradient_clip=p101": ("model.gradient_clip is a bound", "from above p0 to p100"),
    "model.gradient_clip=q99": ("model.gradient_clip is a bound", "such as p99"),
    "model.gradient_clip=[p99]": ("model.gradient_clip", "a number or a word"),
    "model=nope": ("no model called nope",),
    "missing.test_rate=2": ("missing.test_rate is a probability",),
    "seed=1.5": ("seed is a whole number",),
    "seed=-1": ("seed is a whole number",),
    "seed=1,2": ("seed has several values",),
    "seed=99999999999999999999": ("seed is too large",),
    "sweep=x": ("sweep= belongs to a sweep", "mmrun train -m"),
    "rerun=true": ("rerun= belongs to a sweep",),
    "seeds=0": ("seeds= is a number of seeds",),
    "-m clip=0.5,nope": ("no clip called nope",),
    "-m optimizer.lr=0.1,0.2 fusion=atention": ("no fusion called atention", "attention"),
    "-m name=x": ("the points of a sweep name themselves", "sweep=NAME"),
    "-m launcher=nope": ("no launcher called nope", "inline"),
    "-m launcher.nope=1": ("launcher has no key nope",),
    "-m launcher.fail_fast=3": ("launcher.fail_fast", "true or false"),
    "-m launcher._target_=os.path.join": ("launcher._target_",),
    "-m outputs=afile": ("cannot make the sweep's folder", "outputs=DIR"),
    "-m sweep=a/b": ("a sweep's name is that of one folder",),
    "-m sweep=..": ("a sweep's name is that of one folder",),
    "-m clip=interval(0,1)": ("a grid has no intervals",),
    "threads=0": ("threads is a whole number, from 1 to 1024",),
    "threads=1000000": ("threads is a whole number, from 1 to 1024",),
    "trainer.devices=0": ("trainer.devices", "1 or more"),
    "trainer.num_nodes=2": ("this machine only",),
    "trainer.max_epochs=1e9": ("trainer.max_epochs", "an integer"),
    "trainer.max_epochs=99999999999999999999": ("trainer.max_epochs is too large",),
    "trainer.max_time=abc": ("trainer.max_time", "DD:HH:MM:SS"),
    "trainer.precision=8": ("trainer.precision", "32-true"),
    "trainer.target.nope=1": ("validation metric", "accuracy"),
    "++trainer.foo=1": ("trainer takes no foo",),
    "+new.key=1": ("no key new",),
    "logger.mode=nope": ("no such logger", "offline"),
    "logger.tags=[1]": ("logger.tags has the wrong type",),
    "outputs=": ("outputs is text",),
    "outputs=null": ("outputs is text",),
    "outputs=afile": ("cannot create the run directory", "outputs=DIR"),
    "hydra.run.dir=x": ("Hydra only composes here", "outputs=DIR"),
    "hydra/launcher=ray": ("Hydra only composes here",),
    "--nope": ("no such flag", "--dry-run"),
    "--multirn": ("no such flag", "--multirun"),
    "--config-dir": ("--config-dir wants a value",),
    "--config-dir nowhere": ("--config-dir is no folder",),
    "--config-dir .": ("--config-dir has no options",),
    "--cfg": ("--cfg cannot show this", "job"),
    "--cfg nope": ("--cfg cannot show this", "job"),
    "--info nope": ("this is no override",),
    "--cfg job fusion=nope": ("no fusion called nope",),
    "--cfg job -p nope": ("Hydra cannot answer this", "package 'nope' not found"),
    "--cfg job --resolve optimizer.lr=${nope}": ("Hydra cannot answer this", "'nope' not found"),
    "=": ("this is no override", "KEY=VALUE"),
    "foo": ("this is no override",),
    "fusion = attention": ("this is no override",),
    "a.b.c=1": ("no key a",),
    "fusion.x.y=1": ("fusion has no key x",),
    "seed.x=1": ("seed is a value, not a mapping",),
    "nope/x=1": ("no group nope",),
    "clip/norm=1": ("clip has no parts",),
}


@pytest.fixture(autouse=True)
def a_file(tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("")


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command is answered with."""
    before = sorted(Path().rglob("*"))
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mmrun: ")
    assert err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before
    return err


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_wrong_training_is_refused(typed: str, capsys: pytest.CaptureFixture[str]):
    words = [typed] if "{threshold" in typed else typed.split(" ")
    said = refused(["train", *words], capsys)
    for wanted in MISTAKES[typed]:
        assert wanted in said, said


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["trian"], "Did you mean train?"),
        (["fusion=attention"], "mmrun train fusion=attention"),
        (["show", "nope"], "there are no runs yet"),
        (["suggest", "nope"], "there are no runs yet"),
        (["resume"], "required: RUN"),
        (["eval", "nope", "--nope"], "unrecognized arguments: --nope"),
        (["predict", "nope"], "--input, --output"),
        (["list", "nope"], "there is no such group"),
        (["list", "clip/nrom"], "Did you mean norm?"),
        (["list", "--config-dir", "nowhere"], "--config-dir is no folder"),
        (["eval", "last", "missing.test_rate=0.1,0.2"], "there are no runs yet"),
        (["resume", "last", "--trust"], "--trust wants a value"),
    ],
)
def test_a_wrong_verb_is_refused(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]):
    assert wanted in refused(words, capsys)


def test_online_without_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv("WANDB_MODE")
    said = refused(["train", "dataset=synthetic", "logger=wandb"], capsys)
    assert "no W&B key found" in said
    assert "logger=offline" in said


def test_arrays_that_disagree(capsys: pytest.CaptureFixture[str]):
    write_arrays(Path("own"), {"left": ("vector", (4,)), "right": ("vector", (3,))})
    np.save("own/right/train_data.npy", np.zeros((7, 3), np.float32))
    words = ["train", "dataset=arrays", "dataset.root=own"]
    said = refused([*words, "dataset.modalities={left:vector,right:vector}"], capsys)
    assert "train has 30 labels but 7 samples of right" in said


@pytest.mark.trains
def test_a_checkpoint_of_another_model(capsys: pytest.CaptureFixture[str]):
    """For eval and resume alike; the run stays what it was."""
    own = fit(*SMALL, "trainer.max_steps=1", "trainer.checkpoint=both", "name=own")["directory"]
    other = fit(
        *SMALL, "trainer.max_steps=1", "trainer.checkpoint=both", "encoder.a.dim=5", "name=other"
    )
    for name in ("best", "last"):
        os.replace(
            other["directory"] / f"checkpoints/{name}.ckpt", own / f"checkpoints/{name}.ckpt"
        )
    capsys.readouterr()
    for verb in ("eval", "resume"):
        assert "this checkpoint is of another model" in refused([verb, "own"], capsys)
    torch.save([1, 2], own / "checkpoints" / "best.ckpt")
    assert "this is no checkpoint" in refused(["eval", "own"], capsys)
    (own / "checkpoints" / "best.ckpt").write_bytes(b"not a checkpoint")
    said = refused(["eval", "own"], capsys)
    assert said.endswith("best.ckpt). It is damaged, or holds more than weights.\n")
    (own / "checkpoints" / "best.ckpt").unlink()
    (own / "checkpoints" / "last.ckpt").unlink()
    assert "this run kept no checkpoint" in refused(["eval", "own"], capsys)
    with pytest.raises(UserError, match="kept no checkpoint"):
        restore(own)


def test_a_traceback_is_printed_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MMRUN_TRACEBACK", "1")
    assert cli.main(["train", "fusion=nope"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_error_that_is_not_the_users_exits_with_1_and_hints_at_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(_: list[str]) -> int:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(cli.VERBS, "show", broken)
    assert cli.main(["show"]) == 1
    assert capsys.readouterr().err == (
        "mmrun: RuntimeError: first line\nMMRUN_TRACEBACK=1 prints the traceback.\n"
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("late boom \x1b[31m"), "mmrun: ValueError: late boom \\x1b[31m"),
        (ValueError(), "mmrun: ValueError"),
        (ValueError(" \n"), "mmrun: ValueError"),
        (ModuleNotFoundError("no \x1b[31m"), "mmrun: no \\x1b[31m"),
    ],
)
def test_an_error_says_nothing_to_the_terminal_itself(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def broken(_: list[str]) -> int:
        error.add_note("a note \x1b]0;x\x07")
        raise error

    monkeypatch.setitem(cli.VERBS, "show", broken)
    assert cli.main(["show"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [said, "a note \\x1b]0;x\\x07"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory."),
        (b"", "EOFError"),
        (b"not a checkpoint", "It is damaged, or holds more than weights."),
        (b"PK\x03\x04" + b"x" * 100, "RuntimeError: PytorchStreamReader failed"),
    ],
)
def test_what_cannot_be_read_as_a_checkpoint_is_said_in_a_clause(
    content: bytes | None, said: str, tmp_path: Path
):
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_checkpoint(path)
    assert raised.value.remedy.startswith(said)
    assert len(raised.value.remedy) <= 120


def test_a_missing_package_points_to_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(_: list[str]) -> int:
        import no_such_package  # pyright: ignore[reportMissingImports]  # noqa: F401 (it is not there)

        return 0

    monkeypatch.setitem(cli.VERBS, "show", broken)
    assert cli.main(["show"]) == 1
    err = capsys.readouterr().err
    assert "No module named 'no_such_package'" in err
    assert "mmrun doctor" in err


def test_a_message_is_one_line_that_a_terminal_can_show():
    error = UserError("a\nb", given="\x1b[31mred\x00\udcff", remedy="é is fine")
    assert str(error) == "a b (given: \\x1b[31mred\\x00\\udcff). é is fine"
    assert printable("line\n\nnext") == "line next"
    assert described(ValueError("why")) == "ValueError: why"
    assert described(ValueError()) == described(ValueError(" ")) == "ValueError"
    assert shortened("a" * 300 + "b" * 300, 60) == "a" * 38 + "..." + "b" * 19
    assert shortened("a" * 60, 60) == "a" * 60
    assert len(str(UserError("x" * 10_000, given="y" * 10_000))) < 2 * LONGEST + 50


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("attentoin", "Did you mean attention? Available: attention, concat."),
        ("xyz", "Available: attention, concat."),
    ],
)
def test_nearest(name: str, said: str):
    assert nearest(name, ["concat", "attention"]) == said


def test_nearest_counts_what_it_leaves_out():
    assert nearest("z", "abcde", limit=3) == "Available: a, b, c and 2 more."
    assert nearest("z", []) == "There is nothing to choose from."
