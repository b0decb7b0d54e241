"""The command line: which verb is meant, and what ``mmrun --help`` says.

A verb is a module of ``mmrun.verbs``, imported when it is used: ``mmrun --help`` imports nothing but the standard library.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial

from mmrun import __version__
from mmrun.errors import UserError, nearest
from mmrun.exits import guarded

HELP = """\
mmrun: train multimodal models with gradient clipping as a controlled variable

  mmrun train [GROUP=OPTION ...] [KEY=VALUE ...]   one run, e.g. mmrun train fusion=attention clip=0.5
  mmrun train -m clip=none,0.5,2 seeds=3           a sweep: every combination, three seeds each
  mmrun resume RUN|SWEEP [trainer.max_epochs=N]    continue an interrupted run or sweep
  mmrun sweep status|cancel SWEEP                  how a sweep stands: points, time left, best; or end it
  mmrun eval RUN [missing.test_rate=0.3]           score a finished run under other test conditions
  mmrun predict RUN --input DIR --output FILE      use a finished run
  mmrun suggest RUN                                thresholds worth trying, from its raw gradient norms
  mmrun show RUN                                   config, verdict, metrics, the command that reproduces it
  mmrun compare [PATH ...] [--by KEY,KEY]          settings side by side: mean and sd over seeds, best first
  mmrun wandb sync [PATH ...]                      upload the runs that W&B does not have yet
  mmrun list [GROUP | GROUP/OPTION]                what there is to choose from, and its settings
  mmrun doctor                                     python, torch, devices, write access, W&B key

RUN is a path, a name or unique id prefix below outputs/ (MMRUN_OUTPUTS names another folder), or last.
TAB completes after eval "$(mmrun -sc install=bash)"; zsh too; in fish, mmrun -sc install=fish | source.
mmrun VERB --help says more; MMRUN_TRACEBACK=1 shows where an error came from.
Exit codes: 0 good, 1 a run failed or diverged, 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not os.environ.get("MMRUN_OUTPUTS", "unset"):
        del os.environ["MMRUN_OUTPUTS"]  # empty is as good as unset
    return guarded(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"mmrun {__version__}")
        return 0
    if words[0] == "-sc":
        from mmrun import completion, runs
        from mmrun.verbs.garbage import uncollected

        with uncollected():
            return completion.main(words[1:], VERBS, runs.outputs())
    verb = VERBS.get(words[0])
    if verb is None:
        remedy = nearest(words[0], VERBS)
        if "=" in words[0]:
            remedy = f"Did you mean mmrun train {words[0]}?"
        raise UserError("there is no such command", given=words[0] or "nothing", remedy=remedy)
    return verb(words[1:])


def _run(verb: str, words: list[str]) -> int:
    return importlib.import_module(f"mmrun.verbs.{verb}").main(words)


VERBS: dict[str, Callable[[list[str]], int]] = {
    verb: partial(_run, verb)
    for verb in (
        "train",
        "resume",
        "sweep",
        "eval",
        "predict",
        "suggest",
        "show",
        "compare",
        "wandb",
        "list",
        "doctor",
    )
}

if __name__ == "__main__":
    sys.exit(main())
