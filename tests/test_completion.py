"""Completion: what is offered, how fast, that it breaks no prompt, and the scripts in real shells."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmrun import cli, compose
from mmrun.cli import VERBS
from mmrun.completion import candidates
from mmrun.options import conf_dir, groups, options
from mmrun.shells import SCRIPTS
from mmrun.sources import register
from tests.running import ROOT, run_python

RUNS = ("2026-01-02_03-04-05_clip=0.5_0a1b2c3d", "sweep1/clip=none_11111111", "sweep1/it's_2222")


@pytest.fixture
def outputs() -> Path:
    """A run, and a sweep of two points, one with a name that shells read."""
    for name in RUNS:
        folder = Path("outputs") / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    return Path("outputs")


@pytest.fixture
def own() -> str:
    """A folder of the user's configs."""
    folder = Path("my project/conf/fusion")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# Mine\n_target_: mine.Mine\nwidth: 3\ndeep: {er: 1}\n")
    return "my project/conf"


def offered(line: str, outputs: Path = Path("outputs")) -> list[str]:
    return candidates(line, VERBS, outputs)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("mmrun tr", "train"),
        ("mmrun ", " ".join(sorted(VERBS))),
        ("mmrun --v", "--version"),
        ("scripts/mmrun tr", "train"),
        ("CUDA_VISIBLE_DEVICES=1 X= mmrun tr", "train"),
        ("mmrun train cl", "clip. clip="),
        ("mmrun train enc", "encoder. encoder/"),
        ("mmrun train clip=0.5 cl", "clip."),
        ("mmrun train clip=va", "clip=value"),
        ("mmrun train 'clip=va", "clip=value"),
        ("mmrun train clip=none,va", "clip=none,value"),
        ("mmrun train -m fusion=sum clip=norm,va", "clip=norm,value"),
        ("mmrun train encoder/text=l", "encoder/text=lstm"),
        ("mmrun train encoder/t", "encoder/text="),
        ("mmrun train dataset=synthetic encoder/", "encoder/a= encoder/b= encoder/c="),
        ("mmrun train dataset=synthetic dataset.use=[a,c] encoder/", "encoder/a= encoder/c="),
        ("mmrun train clip=0.5 clip.thr", "clip.threshold="),
        ("mmrun train clip=none clip.thr", ""),
        ("mmrun train clip=none clip.fl", "clip.floor="),  # of the settings that all laws have
        ("mmrun train clip=p90 clip.sc", "clip.schedule= clip.schedule_end= clip.scopes."),
        ("mmrun train clip.scopes.text=norm clip.scopes.text.th", "clip.scopes.text.threshold="),
        ("mmrun train -m clip=none,0.5 seeds=3 clip.thr", "clip.threshold="),
        ("mmrun train -m 'clip=choice(0.5,none)' clip.thr", "clip.threshold="),
        ("mmrun train optimizer.l", "optimizer.lr="),
        ("mmrun train optimizer.lr=", "optimizer.lr=0.003"),
        ("mmrun train optimizer=sgd optimizer=adam optimizer.l", ""),  # given twice: no config
        ("mmrun train encoder.te", "encoder.text."),
        ("mmrun train ++optimizer.l", "++optimizer.lr="),
        ("mmrun train se", "seed= seeds="),
        ("mmrun train sw", "sweep= sweeper. sweeper="),
        ("mmrun train -m seeds=2 s", "schedule. schedule= seed= sweep= sweeper. sweeper="),
        ("mmrun train re", "rerun="),
        ("mmrun train -m rerun=", "rerun=false rerun=stale rerun=true"),
        ("mmrun train -m rerun=s", "rerun=stale"),
        ("mmrun train -m", "-m"),
        ("mmrun train --mul", "--multirun"),
        ("mmrun train --dr", "--dry-run"),
        ("mmrun train dataset.use=", ""),  # a list: what to type is not one word of it
        ("mmrun train hydra.", ""),
        ("mmrun train optimizer._", ""),
        ("mmrun train clip=nosuch clip.t", ""),
        ("mmrun train --cf", "--cfg"),
        ("mmrun train --cfg ", "all hydra job"),
        ("mmrun train --cfg job fus", "fusion. fusion="),
        ("mmrun train --config-dir ", ""),
        ("mmrun train --config-dir nowhere fus", ""),
        ("mmrun list cl", "clip"),
        ("mmrun list clip/va", "clip/value"),
        ("mmrun list clip ", ""),
        ("mmrun predict --o", "--output"),
        ("mmrun predict last --output ", ""),
        ("mmrun resume --", "--config-dir --help --trust"),
        ("mmrun compare --format ", "csv json latex md table"),
        ("mmrun su", "suggest"),
        ("mmrun suggest --format m", "md"),
        ("mmrun compare --by clip --format m", "md"),
        ("mmrun compare --select ", "val"),
        ("mmrun compare --by ", ""),
        ("mmrun compare --where ", ""),
        ("mmrun compare --figure ", ""),
        ("mmrun wandb ", "sync"),
        ("mmrun wandb --d", "--dry-run"),
        ("mmrun nonsense ", ""),
        ("mmrun", ""),
        ("", ""),
    ],
)
def test_what_is_offered(line: str, found: str):
    assert offered(line) == found.split()


def test_runs_by_name_and_points_when_their_sweep_is_there(outputs: Path):
    assert offered("mmrun show ", outputs) == [RUNS[0], "last", "sweep1/"]
    for verb in ("show", "suggest --format md", "resume", "eval", "predict --output x"):
        assert offered(f"mmrun {verb} la") == ["last"]
        assert offered(f"mmrun {verb} 2026") == [RUNS[0]]
    assert offered("mmrun eval sweep1/c") == [RUNS[1]]
    assert offered("mmrun show ", Path("nowhere")) == []
    assert offered("mmrun show last ") == []
    for words in ("compare", "compare last", "compare --by clip --select val", "wandb sync"):
        assert offered(f"mmrun {words} ") == [RUNS[0], "last", "sweep1", "sweep1/"], words
    assert offered("mmrun compare sweep1/c") == [RUNS[1]]
    assert offered("mmrun resume last 20") == []


def test_a_user_s_folder_offers_its_options_and_keys(own: str):
    assert offered(f"mmrun train --config-dir '{own}' fusion=m") == ["fusion=mine"]
    assert offered(f"mmrun train '--config-dir={own}' fusion=m") == ["fusion=mine"]
    line = f"mmrun train --config-dir '{own}' fusion=mine fusion."
    assert offered(line) == ["fusion.deep.", "fusion.width="]
    assert offered(f"{line}deep.") == ["fusion.deep.er="]
    assert offered(f"mmrun list --config-dir '{own}' fusion/m") == ["fusion/mine"]
    Path(own, "fusion/broken.yaml").write_text("a: [1\n  b: }")
    assert offered(f"mmrun train --config-dir '{own}' fusion=broken fusion.") == []


@pytest.mark.parametrize(
    "word", ["", "cl", "seed", "clip=", "fusion=", "optimizer.", "model.", "trainer.m"]
)
def test_all_that_hydra_would_offer_and_mmrun_takes(word: str):
    """Hydra's own completion of the same config, without its own keys and what is chosen per modality."""
    from hydra import version
    from hydra._internal.hydra import Hydra
    from hydra._internal.utils import create_config_search_path
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    version.setbase("1.3")
    words = compose.full_overrides([])
    register()
    try:
        hydra = Hydra.create_main_hydra2("mmrun", create_config_search_path(str(conf_dir())))
        line = " ".join([*words, word])
        theirs = DefaultCompletionPlugin(hydra.config_loader)._query("config", line)
    finally:
        GlobalHydra.instance().clear()
    taken = {each for each in theirs if "._" not in each and not each.startswith("hydra")}
    taken -= {"encoder=", "optimizer.betas."}  # chosen per modality; a list is set as a whole
    assert taken
    assert taken <= set(offered(f"mmrun train {word}"))


def test_every_option_of_every_group_is_offered():
    for group in groups():
        key = "encoder/text" if group == "encoder" else group
        found = offered(f"mmrun train {key}=")
        assert found == sorted(f"{key}={each}" for each in options(group)), group


@pytest.mark.parametrize(
    "line",
    [
        "mmrun train '", 'mmrun train "clip=', "mmrun train \\", "mmrun train clip=none,", "mmrun train =",
        "mmrun train a.b.c.d=", "mmrun train encoder/text/x=", "mmrun train ~clip", "mmrun train +",
        "mmrun train 'dataset.modalities={a:", "mmrun train -", "mmrun show '", "mmrun list /", "mmrun \0 ",
        "mmrun train --config-dir", "mmrun train clip='choice(' clip.", "mmrun train é.", "mmrun -sc query=",
    ],
)  # fmt: skip
def test_no_line_breaks_it(line: str, capfd: pytest.CaptureFixture[str]):
    offered(line)
    assert capfd.readouterr() == ("", "")


def test_another_shell_is_a_mistake(capsys: pytest.CaptureFixture[str]):
    for words in ([], ["install"], ["install=tcsh"], ["query=bash", "more"]):
        assert cli.main(["-sc", *words]) == 2
        assert "Write one of install=bash, install=zsh, install=fish" in capsys.readouterr().err


# What it costs


def asked(line: str, *python: str) -> subprocess.CompletedProcess[str]:
    return run_python(*python, "-m", "mmrun", "-sc", "query=zsh", COMP_LINE=line)


@pytest.mark.parametrize(
    ("line", "light"),
    [("mmrun tr", True), ("mmrun train clip=", True), ("mmrun train opt", True), ("mmrun list cl", True),
     ("mmrun eval --tr", True), ("mmrun show la", True), ("mmrun compare --format ", True), ("mmrun train optimizer.l", False)],
)  # fmt: skip
def test_a_tab_loads_no_torch_and_mostly_no_hydra(line: str, light: bool, outputs: Path):
    assert outputs.is_dir()
    done = asked(line, "-X", "importtime")
    modules = {each.rpartition("|")[2].strip() for each in done.stderr.splitlines()}
    assert done.stdout.strip()
    assert "mmrun.completion" in modules
    assert not {"torch", "pytorch_lightning", "wandb"} & modules
    assert ("hydra" not in modules) == light


def test_a_tab_costs_little():
    """0.35 s of CPU where the config must be composed; three times that is allowed."""
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert asked("mmrun train clip=0.5 clip.thr").stdout == "clip.threshold=\n"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 1.1


# In real shells


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """A folder with ``mmrun`` in it, for PATH; and as a virtual environment for scripts/mmrun."""
    folder = tmp_path / "venv" / "bin"
    folder.mkdir(parents=True)
    program = folder / "mmrun"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mmrun "$@"\n')
    program.chmod(0o755)
    return folder


def in_shell(shell: str, words: list[str], script: str, bin_folder: Path) -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run(
        [shell, *words, "-c", script],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
            "MMRUN_VENV": str(bin_folder.parent),
            "PYTHON": "false",  # scripts/mmrun would fail if it set something up
        },
        timeout=120,
        check=False,
    )
    assert done.stderr == "", done.stderr
    return done.stdout


# Calls the function that `complete -F` names as readline does: words split also at = and :, COMP_WORDBREAKS.
BASH = r"""
set -u
eval "$(mmrun -sc install=bash)"
ask() {
  local COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDS COMP_CWORD current
  read -ra COMP_WORDS <<< "${1//=/ = }"
  [[ $1 == *[=\ ] ]] && COMP_WORDS+=("")
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
  current=${COMP_WORDS[COMP_CWORD]}
  COMPREPLY=()
  $function "${COMP_WORDS[0]}" "$current" ""
  printf '%s|' "$1" ${COMPREPLY[@]+"${COMPREPLY[@]}"}
  echo
}
function=$(complete -p mmrun | sed 's/.*-F \([^ ]*\) .*/\1/')
"""


def test_bash(bin_folder: Path, outputs: Path):
    assert outputs.is_dir()
    laws = sorted(options("clip"))
    lines = {
        "mmrun tr": "train ",
        "mmrun train cl": "clip.|clip=",
        "mmrun train clip=": "|".join(f"{law} " for law in laws),
        "mmrun train clip=va": "value ",
        "mmrun train -m clip=none,va": "none,value ",
        "mmrun train clip=0.5 clip.thr": "clip.threshold=",
        "mmrun show 2026-01-02_03-04-05_cl": "2026-01-02_03-04-05_clip=0.5_0a1b2c3d ",
        "mmrun show 2026-01-02_03-04-05_clip=0": "0.5_0a1b2c3d ",
        "mmrun show sweep1/i": r"sweep1/it\'s_2222 ",
        "mmrun nonsense x": "",
        f"{ROOT}/scripts/mmrun tr": "train ",  # which sets nothing up for a TAB
    }
    script = BASH + "".join(f"ask '{line}'\n" for line in lines)
    said = in_shell("bash", ["--norc", "--noprofile"], script, bin_folder).splitlines()
    assert said == [f"{line}|{found}{'|' if found else ''}" for line, found in lines.items()]


def test_bash_keeps_the_word_breaks_of_others_and_lets_go(bin_folder: Path):
    script = (
        'before=$COMP_WORDBREAKS; eval "$(mmrun -sc install=bash)"; complete -p mmrun\n'
        '[ "$before" = "$COMP_WORDBREAKS" ] && echo same\n'
        'eval "$(mmrun -sc uninstall=bash)"; complete -p mmrun 2>/dev/null; declare -F _mmrun; echo end'
    )
    said = in_shell("bash", ["--norc", "--noprofile"], script, bin_folder)
    assert said == "complete -o default -o nospace -F _mmrun mmrun\nsame\nend\n"


def test_zsh(bin_folder: Path, outputs: Path):
    """The functions that only work while a line is being edited are replaced by ones that print."""
    assert outputs.is_dir()
    script = r"""
autoload -Uz compinit && compinit -D -u
eval "$(mmrun -sc install=zsh)"
compadd() { print -rn -- "$@|" }; _files() { print -rn files }; compset() { true }
ask() {
  words=(${=1}); [[ $1 == *" " ]] && words+=(""); CURRENT=$#words; PREFIX=$words[-1]
  print -rn -- "$1|"; $_comps[mmrun]; print
}
ask 'mmrun tr'; ask 'mmrun train clip=va'; ask 'mmrun train clip=0.5 cl'; ask 'mmrun show '; ask 'mmrun predict --input '
eval "$(mmrun -sc uninstall=zsh)"; print "end $_comps[mmrun]"
"""
    assert in_shell("zsh", ["-f"], script, bin_folder).splitlines() == [
        "mmrun tr|-S  --|-- train|",
        "mmrun train clip=va|-S  --|-- clip=value|",
        "mmrun train clip=0.5 cl|-S  -- clip.|--|",
        f"mmrun show |-S  -- sweep1/|-- {RUNS[0]} last|",
        "mmrun predict --input |files",
        "end ",
    ]


def test_fish(bin_folder: Path, outputs: Path):
    assert outputs.is_dir()
    script = """
mmrun -sc install=fish | source
for line in 'mmrun tr' 'mmrun train clip=va' 'mmrun train clip=0.5 clip.thr' 'mmrun show la' 'mmrun predict --input out' \
        'mmrun train dataset.root=out'
    echo "$line|"(string join ' ' (complete -C "$line"))
end
mmrun -sc uninstall=fish | source
functions -q __mmrun_complete; or echo end
"""
    said = [
        line.partition("\t")[0]
        for line in in_shell("fish", ["--no-config"], script, bin_folder).splitlines()
    ]
    assert said == [
        "mmrun tr|train",
        "mmrun train clip=va|clip=value",
        "mmrun train clip=0.5 clip.thr|clip.threshold=",
        "mmrun show la|last",
        "mmrun predict --input out|outputs/",
        "mmrun train dataset.root=out|dataset.root=outputs/",
        "end",
    ]


def test_each_script_asks_for_its_own_shell():
    for shell, (script, _) in SCRIPTS.items():
        assert f"-sc query={shell} 2>/dev/null" in script
        assert json.dumps(script).isascii()
