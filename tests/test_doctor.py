"""mmrun doctor: one line per question, honest about failures, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mmrun import cli, doctor
from tests.running import run_python

TORCH = {"version": "9.9", "built": None, "gpus": [], "threads": 2, "right": True}


def answer(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let the child that would be asked about torch say this."""
    text = json.dumps(TORCH | changes)
    done = subprocess.CompletedProcess([], 0, stdout=f"a warning\n{text}\n", stderr="")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: done)


def line(text: str, what: str) -> str:
    (found,) = [each for each in text.splitlines() if each[6:].startswith(f"{what} ")]
    return found


def test_a_good_place_is_called_good_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch):
    answer(monkeypatch)
    text, well = doctor.report(Path("outputs"))
    assert well, text
    assert text.endswith("mmrun can work here")
    assert (
        line(text, "torch")
        == "ok    torch              9.9, built for CPUs only, 2 threads by default"
    )
    assert line(text, "outputs").startswith("ok")
    assert "will be made" in line(text, "outputs")
    assert os.listdir() == []
    for what in ("python", "platform", "pytorch-lightning", "hydra-core", "wandb", "disk", "text"):
        assert line(text, what).startswith("ok"), what


def test_torch_is_asked_for_real_in_a_child_and_not_imported_here():
    code = (
        "import sys; from pathlib import Path; from mmrun import doctor\n"
        "text, well = doctor.report(Path('outputs'))\n"
        "assert not {'torch', 'hydra', 'wandb', 'numpy'} & set(sys.modules)\n"
        "print(text)"
    )
    asked = run_python("-c", code)
    assert asked.returncode == 0, asked.stderr
    assert line(asked.stdout, "torch").startswith("ok"), asked.stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"right": False}, "cannot multiply"),
        ({"gpus": ["A", "B"], "built": "12.4"}, "ok    GPUs               A, B"),
        ({"threads": 1}, "1 thread by default"),
    ],
)
def test_what_torch_says(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str):
    answer(monkeypatch, **changes)
    text, well = doctor.report(Path("outputs"))
    assert said in text
    assert well is changes.get("right", True)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise ImportError('no libtorch')", "ImportError: no libtorch"),
        ("import os; os.abort()", "it ended with -6"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_broken_torch_is_a_failure(monkeypatch: pytest.MonkeyPatch, program: str, said: str):
    monkeypatch.setattr(doctor, "ASK_TORCH", program)
    monkeypatch.setattr(doctor, "TORCH_TIMEOUT_S", 0.5 if "sleep" in program else 60)
    text, well = doctor.report(Path("outputs"))
    assert not well
    assert line(text, "torch").startswith("fail")
    assert said in text
    assert "mmrun cannot work here yet: torch" in text


def test_a_folder_that_cannot_be_written_is_a_failure_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
):
    answer(monkeypatch)
    text, well = doctor.report(Path("/proc/mmrun"))
    assert not well
    assert line(text, "outputs").startswith("fail")
    assert "MMRUN_OUTPUTS=DIR" in text


def test_a_file_in_the_way_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    answer(monkeypatch)
    Path("outputs").write_text("")
    assert not doctor.report(Path("outputs"))[1]


def test_little_space_is_a_warning_only(monkeypatch: pytest.MonkeyPatch):
    answer(monkeypatch)
    monkeypatch.setattr(doctor, "LEAST_FREE_GB", 1e9)
    text, well = doctor.report(Path("outputs"))
    assert line(text, "disk").startswith("warn")
    assert well


def test_a_key_is_found_and_never_printed(monkeypatch: pytest.MonkeyPatch):
    answer(monkeypatch)
    assert "none for" in line(doctor.report(Path("outputs"))[0], "W&B key")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    text, _ = doctor.report(Path("outputs"))
    assert "found for" in line(text, "W&B key")
    assert "0123456789" not in text
    assert "WANDB_MODE=offline" in line(text, "W&B mode")


def test_extras_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch):
    answer(monkeypatch)
    monkeypatch.setattr(doctor.metadata, "metadata", lambda _: FakeMetadata())
    wanted = ["numpy>=1", "ruff; extra == 'dev'", 'no-such-thing>=2; extra == "ray"']
    monkeypatch.setattr(doctor.metadata, "requires", lambda _: wanted)
    text, well = doctor.report(Path("outputs"))
    assert line(text, "extra ray").endswith("without no-such-thing")
    assert "pip install 'mmrun[ray]'" in text
    assert line(text, "extra dev").startswith("ok")
    assert well


class FakeMetadata:
    def get_all(self, name: str) -> list[str]:
        return {"Provides-Extra": ["dev", "ray"]}[name]


def test_the_verb_exits_with_1_for_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answer(monkeypatch)
    assert cli.main(["doctor"]) == 0
    answer(monkeypatch, right=False)
    assert cli.main(["doctor"]) == 1
    assert "cannot multiply" in capsys.readouterr().out
