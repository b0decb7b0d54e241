"""``mmrun show``: every fact of a run, a command that can be pasted, and no traceback ever."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from mmrun import runs
from mmrun.compare.show import show
from mmrun.compare.summary import summary
from mmrun.runs.record import KEYS
from mmrun.spec import Point

FORMAT1 = Path(__file__).parent.parent / "runs" / "data" / "format1"


def test_a_finished_run():
    text = show(FORMAT1)
    for said in (
        "clip=0.5,fusion=attention",
        "finished",
        "norm 0.5 clipped 75 % of steps",
        "encoder/audio=cnn",
        "val/loss (min) 0.18",
        "7ad071c00000, with changes",
        "gradients.csv",
        "4 steps, 2 epochs, 12.5 s",
    ):
        assert said in text
    lines = [line.split() for line in text.splitlines()]
    assert ["accuracy", "0.95", "0.94", "0.94", "0.99"] in lines
    assert ["image", "0.21", "0.42", "0.63", "20", "%", "75", "%", "0.9"] in lines
    assert "mmrun train fusion=attention clip=0.5" in text
    assert "resume" not in text
    assert "\x1b" not in text
    assert "\x1b" in show(FORMAT1, color=True)


def test_the_command_can_be_pasted(tmp_path):
    overrides = ("clip=value clip", "dataset.path=/a b/'c'", "x=" + "y" * 200, "+z=[1,2]")
    point = Point(
        config={}, choices={}, overrides=overrides, name="[red]n[/]", config_dirs=("/my conf",)
    )
    text = show(runs.freeze(point, tmp_path / "run").directory, width=60)
    line = next(line for line in text.splitlines() if line.startswith("make it again"))
    words = shlex.split(line.partition(":")[2])
    assert words == ["mmrun", "train", "--config-dir", "/my conf", *overrides]
    assert "[red]n[/]" in text


def test_the_command_has_what_resuming_changed(tmp_path):
    overrides = ("trainer.max_epochs=3", "clip=0.1", "logger=none")
    point = Point(config={}, choices={"clip": "0.1"}, overrides=overrides, name="n")
    run = runs.freeze(point, tmp_path / "run")
    changed = {"trainer.max_epochs": 6, "trainer.max_time": None, "trainer.devices": 2}
    run.update(resumed=changed, status="finished")
    text = show(run.directory)
    line = next(line for line in text.splitlines() if line.startswith("make it again"))
    assert line.endswith(
        "mmrun train clip=0.1 logger=none trainer.max_epochs=6 trainer.max_time=null"
    )
    assert "resumed    trainer.max_epochs=6 trainer.max_time=null" in text
    last = summary({**run.record, "directory": run.directory}).splitlines()[-1]
    assert "train logger=none clip=none trainer.max_epochs=6" in last


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    run = runs.freeze(Point(config={}, choices={}), tmp_path / "my run")
    assert "nothing to resume" in show(run.directory)
    run.update(status="killed", error="[oops] the machine went away")
    run.paths.checkpoints.mkdir()
    run.paths.last.write_text("")
    text = show(run.directory)
    assert f"mmrun resume {shlex.quote(str(run.directory))}" in text
    assert "[oops]" in text
    run.paths.last.unlink()
    run.update(sweep="s", status="queued")
    assert f"mmrun resume {shlex.quote(str(tmp_path))}" in show(run.directory)


def test_a_killed_run_still_gets_a_verdict(tmp_path):
    shutil.copytree(FORMAT1, tmp_path / "run")
    run = runs.Run.open(tmp_path / "run")
    run.update(status="killed", clip={})
    whole = (FORMAT1 / "gradients.csv").read_text()
    run.paths.gradients.write_text(whole + "4,0.2,0")  # torn
    text = show(run.directory)
    assert "norm 0.5 clipped 75 % of steps, median coefficient 0.31" in text.replace("\n", " ")
    assert "with AdamW" in text
    run.update(config={"clip": {"_target_": "mmrun.clip.none.Unclipped"}})
    assert "no clipping: gradient norm p50 1.3" in show(run.directory)
    run.update(config={"clip": "odd", "optimizer": 3})
    assert "killed" in show(run.directory)


def test_it_is_said_whose_norms_stand_beside_a_clipped_update(tmp_path):
    shutil.copytree(FORMAT1, tmp_path / "run")
    run = runs.Run.open(tmp_path / "run")
    scopes = run.record["clip"]["scopes"]
    scopes["image"]["update"] = {"norm": {"p50": 1.5, "p90": 2.5, "p99": 3.5}, "share": 0.3}
    run.update(clip={**run.record["clip"], "scopes": scopes})
    lines = [line.split() for line in show(run.directory, width=80).splitlines()]
    assert ["image", "gradient", "0.21", "0.42", "0.63", "20", "%", "-", "-"] in lines
    assert ["update", "1.5", "2.5", "3.5", "30", "%", "75", "%", "0.9"] in lines


def test_every_broken_directory(tmp_path):
    assert "no run.json here" in show(tmp_path / "gone")
    (tmp_path / "run.json").write_text('{"format": 1')
    (tmp_path / "code.diff").write_text("x")
    text = show(tmp_path)
    assert "not JSON" in text
    assert "code.diff" in text
    (tmp_path / "run.json").write_text('{"format": 9}')
    assert "update mmrun" in " ".join(show(tmp_path).split())


@pytest.mark.parametrize("key", sorted(KEYS))
@pytest.mark.parametrize(
    "odd", [{"a/b": {"c": [1]}, "scopes": {"x": 1}}, ["x", 1], "text", 7, None]
)
def test_no_content_of_run_json_raises(tmp_path, key, odd):
    record = json.loads((FORMAT1 / "run.json").read_text())
    record[key] = odd
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert show(tmp_path)


@pytest.mark.parametrize("odd", ["x", 1, None, [], {"norm": 3, "share": "x"}])
def test_odd_blocks_inside_do_not_raise(tmp_path, odd):
    record = json.loads((FORMAT1 / "run.json").read_text())
    record["clip"]["scopes"] = {"image": odd, "audio": {"norm": odd}}
    record["metrics"] = {"val/loss": odd}
    record["test"] = {"test/loss": odd}
    record["git"] = {"commit": odd, "dirty": odd}
    record["config"] = {"clip": odd, "optimizer": odd}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert show(tmp_path)
    record["clip"] = {"algorithm": odd}
    (tmp_path / "run.json").write_text(json.dumps(record))
    shutil.copy(FORMAT1 / "gradients.csv", tmp_path)
    assert show(tmp_path)


def evil(value):
    """The content of a record with a terminal escape at the end of every string, keys included."""
    if isinstance(value, dict):
        return {evil(key): evil(each) for key, each in value.items()}
    if isinstance(value, list):
        return [evil(each) for each in value]
    return f"{value}\x1b]0;owned\x07\r" if isinstance(value, str) else value


@pytest.mark.parametrize("status", ["finished", "failed", "diverged", "killed"])
def test_no_string_of_a_record_acts_upon_the_terminal(tmp_path, status):
    record = json.loads((FORMAT1 / "run.json").read_text())
    dirty = {key: evil(value) for key, value in record.items()}
    dirty |= {"status": status, "error": evil("oops\n"), "config_dirs": [evil("/my conf")]}
    (tmp_path / "run.json").write_text(json.dumps(dirty))
    read = runs.read(tmp_path)
    assert read["status"] == status
    for text in (show(tmp_path), summary({**read, "directory": evil(str(tmp_path))})):
        assert "\\x1b]0;owned\\x07\\r" in text
        assert all(each.isprintable() for each in text.split("\n"))
    dirty["status"] = evil(status)
    (tmp_path / "run.json").write_text(json.dumps(dirty))
    assert "\x07" not in show(tmp_path, color=True)
