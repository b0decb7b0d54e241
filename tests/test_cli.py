"""The command line as a person meets it: help, lists, answers, terminals, pipes and Ctrl-C."""

from __future__ import annotations

import fcntl
import gc
import os
import pty
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mmrun import cli
from tests.running import CONF, PACKAGE, ROOT, SMALL, fit, mmrun, record_of, run_python, the_run

A_RUN = str(ROOT / "tests" / "runs" / "data" / "format1")
FUSION = """\
import torch
from mmrun.fusion import Fusion


class Mine(Fusion):
    def __init__(self, dims, *, gain: float = 1.0):
        super().__init__(dims)
        self.dim, self.gain = sum(dims.values()), gain

    def forward(self, tokens):
        return self.gain * torch.cat([tokens[name].pooled for name in sorted(tokens)], -1)
"""


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints, in this process."""
    ended = cli.main(words)
    out, err = capsys.readouterr()
    assert (ended, err) == (code, "")
    return out


# Help


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_help_names_every_verb(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    out = said(capsys, *words)
    for verb in cli.VERBS:
        assert f"\n  mmrun {verb}" in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]):
    out = said(capsys, verb, "--help")
    assert f"mmrun {verb}" in out
    assert said(capsys, "help", verb) == out
    assert os.listdir() == []


def test_every_verb_is_a_module():
    files = [path for path in (PACKAGE / "verbs").glob("*.py") if "\ndef main(" in path.read_text()]
    assert {path.stem for path in files} == set(cli.VERBS)


def test_version(capsys: pytest.CaptureFixture[str]):
    assert said(capsys, "--version").startswith("mmrun ")


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (["--help"], ("hydra", "torch", "numpy", "yaml")),
        (["train", "--help"], ("hydra", "torch", "numpy", "yaml")),
        (["list"], ("hydra", "torch", "numpy")),
        (["train", "--cfg", "job"], ("torch", "numpy", "wandb")),
        (["train", "fusion=nope"], ("torch", "numpy", "wandb")),
        (["resume", "nope"], ("torch", "wandb")),
        (["show"], ("torch", "wandb", "hydra")),
        (["suggest", A_RUN], ("torch", "wandb", "hydra", "polars")),
        (["wandb", "sync"], ("torch", "wandb", "hydra")),
    ],
)
def test_what_is_not_imported(words: list[str], absent: tuple[str, ...]):
    code = (
        f"import sys; from mmrun.cli import main; main({words!r})\n"
        f"print('loaded', [name for name in {absent!r} if name in sys.modules])"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "loaded []"


YARD = 0.17  # s that importing Hydra takes where these limits were set


@pytest.mark.parametrize(
    ("words", "seconds"),
    [(["--help"], 0.15), (["train", "--cfg", "job"], 0.4), (["suggest", A_RUN], 0.4)],
)
def test_cpu_time(words: list[str], seconds: float):
    """User and system time beside that of importing Hydra, in turn: a busy or slow machine slows both."""

    def spent(run: Callable[[], Any]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run().returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    tries: list[float] = []
    while len(tries) < 8 and min(tries, default=1.0) > seconds:
        yard = spent(lambda: run_python("-c", "import hydra.main, hydra.compose"))
        tries.append(spent(lambda: mmrun(*words)) / max(1.0, yard / YARD))
    assert min(tries) <= seconds


# Lists and answers


def test_list_names_every_option_and_what_it_is(capsys: pytest.CaptureFixture[str]):
    lines = said(capsys, "list").splitlines()
    for path in CONF.glob("*/*.yaml"):
        (found,) = [
            line
            for k, line in enumerate(lines)
            if line.startswith(f"  {path.stem:16} ") and group_of(lines, k) == path.parent.name
        ]
        assert len(found.split(None, 1)[1]) > 10


def group_of(lines: list[str], k: int) -> str:
    return next(line for line in lines[k::-1] if not line.startswith(" ")).split("/")[0]


def test_list_of_a_group_of_a_modality_and_of_an_option(capsys: pytest.CaptureFixture[str]):
    assert said(capsys, "list", "clip").splitlines()[0] == "clip"
    encoders = said(capsys, "list", "encoder/text").splitlines()
    assert encoders[0] == "encoder/text"
    assert encoders[1:] == said(capsys, "list", "encoder").splitlines()[1:]
    files = (CONF / "clip" / "norm.yaml", CONF / "clipping.yaml")  # its own, then what all have
    assert said(capsys, "list", "clip/norm") == "\n".join(file.read_text() for file in files)
    words = {line.split()[0] for line in said(capsys, "list").splitlines() if line.strip()}
    assert "norm" in words
    assert "clipping" not in words
    assert said(capsys, "list", "encoder/mlp") == (CONF / "encoder" / "mlp.yaml").read_text()


def test_cfg_shows_the_composed_config(capsys: pytest.CaptureFixture[str]):
    words = ["fusion=attention", "clip=0.5", "optimizer.lr=0.1", "encoder/text=lstm"]
    argv = list(sys.argv)
    shown = yaml.safe_load(said(capsys, "train", "--cfg", "job", *words))
    assert shown["fusion"]["_target_"] == "mmrun.fusion.attention.Attention"
    assert shown["clip"]["threshold"] == 0.5
    assert shown["optimizer"]["lr"] == 0.1
    assert shown["encoder"]["text"]["_target_"] == "mmrun.encoders.lstm.LSTM"
    assert (
        yaml.safe_load(said(capsys, "train", "--cfg=job", "-p", "clip", "clip=2"))["threshold"] == 2
    )
    assert sys.argv == argv
    assert os.listdir() == []


def test_info_and_hydra_help(capsys: pytest.CaptureFixture[str]):
    assert "dataset: digits3" in said(capsys, "train", "--info", "defaults-tree")
    assert "Defaults List" in said(capsys, "train", "--info", "defaults")
    assert "Config search path" in said(capsys, "train", "--info")
    assert "hydra.cc" in said(capsys, "train", "--hydra-help")
    assert os.listdir() == []


# The user's own code


@pytest.mark.trains
def test_a_fusion_of_the_users_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It trains from --config-dir; a run directory alone is not trusted with it afterwards."""
    folder = tmp_path / "mine" / "conf"
    (folder / "fusion").mkdir(parents=True)
    (tmp_path / "mine" / "own_fusion_for_a_test.py").write_text(FUSION)
    (folder / "fusion" / "mine.yaml").write_text(
        "# My own fusion\n_target_: own_fusion_for_a_test.Mine\ngain: 2.0\n"
    )
    dirs = f"--config-dir={folder}"
    assert "My own fusion" in said(capsys, "list", "fusion", dirs)
    words = [
        *SMALL,
        "fusion=mine",
        "fusion.gain=3",
        "trainer.max_epochs=1",
        "trainer.checkpoint=both",
    ]
    said(capsys, "train", dirs, *words)
    assert record_of(the_run())["config"]["fusion"]["gain"] == 3
    for verb in ("eval", "resume"):
        assert cli.main([verb, "last"]) == 2
        assert "--trust own_fusion_for_a_test" in capsys.readouterr().err
        for trusting in (dirs, "--trust=own_fusion_for_a_test"):
            said(capsys, verb, "last", trusting)
    load = "import mmrun; print(type(mmrun.load('last', trust=['own_fusion_for_a_test']).model.fusion))"
    # A trusted name is one thing; the folder that the run recorded is not searched for it.
    assert "No module named 'own_fusion_for_a_test'" in run_python("-c", load).stderr
    found = run_python("-c", f"import sys; sys.path.append({str(tmp_path / 'mine')!r}); {load}")
    assert "own_fusion_for_a_test.Mine" in found.stdout, found.stderr
    assert str(folder) in said(capsys, "show")


def test_train_takes_no_trust(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", "--trust", "mine", *SMALL]) == 2
    assert "train takes no --trust (given: mine)" in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_of_garbage_is_left_as_it_was(
    enabled: bool, capsys: pytest.CaptureFixture[str]
):
    assert gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        said(capsys, "train", "--cfg", "job")
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


# Where things go


@pytest.mark.parametrize("linked", [False, True])
def test_the_script_says_how_it_was_called(linked: bool, tmp_path: Path):
    """Its own path as one would type it, so that the commands that mmrun prints can be pasted."""
    folder = tmp_path / "it's a checkout" / "scripts"
    stubs = {folder / "setup": "true", tmp_path / "venv/bin/mmrun": 'printf %s "$MMRUN_COMMAND"'}
    for path, line in stubs.items():
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    script = Path(shutil.copy(ROOT / "scripts" / "mmrun", folder))
    if linked:  # from ~/bin, say
        link = tmp_path / "a link"
        link.symlink_to(script)
        script = link
    done = subprocess.run(
        [script],
        env={"PATH": "/usr/bin:/bin", "MMRUN_VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shlex.split(done.stdout) == [str(script)]


@pytest.mark.trains
def test_train_and_show_agree_on_the_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MMRUN_OUTPUTS", "elsewhere")
    monkeypatch.setenv("MMRUN_COMMAND", "scripts/mmrun")
    out = said(capsys, "train", *SMALL, "trainer=smoke", "clip=0.5", "name=a name")
    directory = the_run("elsewhere")
    assert (
        f"run      {directory.relative_to(Path.cwd()) if directory.is_absolute() else directory}"
        in out
    )
    assert "\nnext     scripts/mmrun train " in out
    assert "make it again:  scripts/mmrun train dataset=synthetic" in said(capsys, "show")
    assert "a name" in said(capsys, "show", "a name").splitlines()[0]


@pytest.mark.trains
def test_letters_of_any_language_and_of_none(capsys: pytest.CaptureFixture[str]):
    said(capsys, "train", *SMALL, "trainer=smoke", "name=été (梯度)", "outputs=größe")
    assert "été" in the_run("größe").name
    shown = mmrun("show", str(the_run("größe")), PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert shown.returncode == 0
    assert "norm?" in shown.stdout
    assert shown.stderr == ""


# Endings


@pytest.mark.parametrize("seconds", [0.15, 0.6, 1.5])
def test_ctrl_c_before_training_leaves_nothing(seconds: float):
    child = subprocess.Popen(
        [sys.executable, "-m", "mmrun", "train", "trainer.max_epochs=1000", "logger=none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(seconds)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode in (130, -signal.SIGINT)  # the latter before mmrun itself has begun
    assert "Traceback" not in err or child.returncode == -signal.SIGINT
    if child.returncode == 130:
        assert err == "mmrun: interrupted\n"
    assert os.listdir() == []


@pytest.mark.trains
def test_a_reader_that_goes_does_not_end_the_training():
    words = " ".join([*SMALL, "trainer.max_epochs=40"])
    command = f"{sys.executable} -m mmrun train {words} | head -1"
    piped = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.startswith("run ")
    assert piped.stderr == ""
    assert record_of(the_run())["status"] == "finished"
    assert record_of(the_run())["epochs"] == 40


def test_a_list_into_head():
    command = f"{sys.executable} -m mmrun list | head -1"
    piped = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (piped.stdout, piped.stderr) == ("balance\n", "")


# Terminals


def in_a_terminal(columns: int, *words: str, interrupt_at: str = "") -> tuple[int, str]:
    """(exit code, what a terminal of that width gets); Ctrl-C is typed once it shows some text."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "TERM": "xterm-256color"}
        environment.pop("COLUMNS", None)
        os.execve(sys.executable, [sys.executable, "-m", "mmrun", *words], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
        if interrupt_at and interrupt_at.encode() in shown:
            os.write(terminal, b"\x03")
            interrupt_at = ""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.trains
@pytest.mark.parametrize("columns", [50, 120])
def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(columns: int):
    words = ["train", *SMALL, "trainer.max_epochs=12", "clip=0.5", "trainer.log_every_n_steps=5"]
    code, shown = in_a_terminal(columns, *words)
    assert code == 0
    drawn, _, after = shown.rpartition("\x1b[2K")
    assert "loss" in drawn
    assert "accuracy" in drawn
    assert "clipped" in drawn
    assert ("━" in drawn) == (columns > 100)
    assert "━" not in after
    assert after.startswith("status   finished")
    assert "Warning" not in shown


@pytest.mark.trains
def test_ctrl_c_in_a_terminal_says_how_to_continue():
    code, shown = in_a_terminal(
        100, "train", *SMALL, "trainer.max_epochs=3000", interrupt_at="val loss"
    )
    assert code == 130
    assert "mmrun: interrupted\r\ncontinue it: mmrun resume outputs/" in shown
    assert "Traceback" not in shown
    record = record_of(the_run())
    assert (record["status"], record["stopped_by"]) == ("killed", "interrupt")


def test_lists_are_wrapped_to_the_terminal():
    code, shown = in_a_terminal(60, "list", "dataset")
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 60


# Failures


@pytest.mark.trains
def test_a_run_that_fails_says_where_its_log_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fails(*_: object) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr("mmrun.module.MultimodalModule.training_step", fails)
    assert cli.main(["train", *SMALL]) == 1
    first, log, hint = capsys.readouterr().err.splitlines()
    assert first == "mmrun: RuntimeError: out of luck"
    assert log.startswith("the run and its log: outputs/")
    assert "out of luck" in Path(log.rpartition(": ")[2]).read_text()
    assert hint == "MMRUN_TRACEBACK=1 prints the traceback."
    assert "failed" in said(capsys, "show")


@pytest.mark.trains
def test_a_run_that_is_being_trained_is_left_alone(capsys: pytest.CaptureFixture[str]):
    directory = fit(*SMALL, "trainer=smoke", "trainer.checkpoint=both")["directory"]
    record = record_of(directory)
    text = (directory / "run.json").read_text()
    (directory / "run.json").write_text(text.replace('"status": "finished"', '"status": "running"'))
    capsys.readouterr()
    assert cli.main(["resume", "last"]) == 2
    assert f"process {record['pid']}" in capsys.readouterr().err
