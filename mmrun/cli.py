"""The command line: one verb, one function; each imports what it needs when it is used.

``mmrun --help`` imports nothing but the standard library; only train, resume, eval and predict import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from mmrun import __version__
from mmrun.errors import UserError, nearest
from mmrun.exits import guarded

HELP = """\
mmrun: train multimodal models with gradient clipping as a controlled variable

  mmrun train [GROUP=OPTION ...] [KEY=VALUE ...]   one run, e.g. mmrun train fusion=attention clip=0.5
  mmrun resume RUN [trainer.max_epochs=N]          continue an interrupted run
  mmrun eval RUN [missing.test_rate=0.3]           score a finished run under other test conditions
  mmrun predict RUN --input DIR --output FILE      use a finished run
  mmrun show RUN                                   config, verdict, metrics, the command that reproduces it
  mmrun list [GROUP | GROUP/OPTION]                what there is to choose from, and its settings
  mmrun doctor                                     python, torch, devices, write access, W&B key

RUN is a path, a name or unique id prefix below outputs/ (MMRUN_OUTPUTS names another folder), or last.
mmrun VERB --help says more; MMRUN_TRACEBACK=1 shows where an error came from.
Exit codes: 0 good, 1 a run failed or diverged, 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
"""

TRAIN_HELP = """\
mmrun train [GROUP=OPTION ...] [KEY=VALUE ...] [--config-dir DIR]

  mmrun train                                      digits3, concat, AdamW, no clipping
  mmrun train fusion=attention clip=0.5            clip=NUMBER is the global norm law at NUMBER
  mmrun train clip=value_0.1 encoder/text=lstm optimizer=momentum optimizer.lr=0.1
  mmrun train dataset.use=[image,text] trainer.max_epochs=5 seed=1

  --cfg job          print the composed config and stop (as Hydra does); --info defaults-tree
  --config-dir DIR   add your own options, DIR/GROUP/OPTION.yaml; _target_ may name modules beside DIR

Groups and their options: mmrun list. Settings of an option: mmrun list clip/norm. All: mmrun train --cfg job.
"""

_Otherwise = TypeVar("_Otherwise", int, None)
RUN_HELP = "a path, a name or unique id prefix below outputs/, or last"


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are told as those of everything else."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"mmrun {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the command line."""
        raise UserError(message, remedy=f"See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
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
    verb = VERBS.get(words[0])
    if verb is None:
        remedy = nearest(words[0], VERBS)
        if "=" in words[0]:
            remedy = f"Did you mean mmrun train {words[0]}?"
        raise UserError("there is no such command", given=words[0] or "nothing", remedy=remedy)
    return verb(words[1:])


def _train(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        print(TRAIN_HELP, end="")
        return 0
    config_dirs, trust, rest = _take_trust(words)
    if trust:
        raise UserError(
            "train takes no --trust",
            given=" ".join(trust),
            remedy="What stands in its command line is trusted already.",
        )
    with _uncollected():
        from mmrun import compose

        if any(word.split("=", 1)[0] in compose.HYDRA_FLAGS for word in rest):
            compose.hydra_answers(rest, config_dirs)
            return 0
        for word in rest:
            if word in ("-m", "--multirun"):
                raise UserError(
                    "sweeps are not part of this version",
                    given=word,
                    remedy="Give every key one value, and call mmrun train once for each.",
                )
            if word.startswith("-"):
                raise UserError(
                    "train has no such flag", given=word, remedy="See mmrun train --help."
                )
        point = compose.point(rest, config_dirs)
    from mmrun.options import add_to_path

    add_to_path(point.config_dirs)
    from mmrun.build import targets
    from mmrun.train import main_exit_code, train

    # What stands in this command line is the user's own; it is trusted as the user is.
    record = train(point, trust=targets(point.config))
    from mmrun.compare.summary import summary

    print(summary(record))
    return main_exit_code(record)


def _resume(words: list[str]) -> int:
    parser = _Parser("resume", "Continue an interrupted run from its last checkpoint.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. trainer.max_epochs=40"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs

    directory = runs.find(given.run, _outputs())
    changes = compose.resumable(given.changes)
    from mmrun import point
    from mmrun.compare.summary import summary
    from mmrun.train import main_exit_code

    record = point.run(directory, resume=True, changes=changes, trust=trust)
    print(summary(record))
    return main_exit_code(record)


def _eval(words: list[str]) -> int:
    parser = _Parser("eval", "Score a finished run once under other test conditions.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. missing.test_rate=0.3"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs
    from mmrun.evaluate import evaluate

    directory = runs.find(given.run, _outputs())
    path, scores = evaluate(directory, compose.changes(given.changes), trust=trust)
    recorded = runs.read(directory)["test"]
    print(f"{'condition':16} {' '.join(given.changes) or 'as trained'}")
    for name, value in scores.items():
        before = f"   as trained {recorded[name]:.4f}" if name in recorded else ""
        print(f"{name:16} {value:.4f}{before if given.changes else ''}")
    print(f"{'written to':16} {path}")
    return 0


def _predict(words: list[str]) -> int:
    parser = _Parser("predict", "Use a finished run on new samples.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="DIR",
        help="a folder with one MODALITY.npy per modality, samples first, as the dataset has them; "
        "a modality without a file is missing",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="a .csv or .npz file"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import runs
    from mmrun.evaluate import predict

    directory = runs.find(given.run, _outputs())
    n, absent = predict(directory, given.input, given.output, trust=trust)
    if absent:
        print(f"no file for {', '.join(absent)}: taken as missing from every sample")
    print(f"{n} predictions written to {given.output}")
    return 0


def _show(words: list[str]) -> int:
    parser = _Parser("show", "What a run was, how it went, and how to do it again.")
    parser.add_argument("run", metavar="RUN", nargs="?", default="last", help=RUN_HELP)
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare.show import show

    color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(show(runs.find(given.run, _outputs()), width=_width(100), color=color))
    return 0


def _list(words: list[str]) -> int:
    parser = _Parser(
        "list",
        "The options of every group, or of one; the settings of an option, with GROUP/OPTION.",
    )
    parser.add_argument(
        "group", metavar="GROUP", nargs="?", help="a group, e.g. clip, or an option, e.g. clip/norm"
    )
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="list your own options too"
    )
    given = parser.parse_args(words)
    from mmrun.options import ENCODER, checked_dirs, describe, groups, options

    dirs = checked_dirs(given.config_dir)
    known = groups(dirs)
    wanted, _, option = (given.group or "").partition("/")
    if given.group is not None and wanted not in known:
        raise UserError("there is no such group", given=given.group, remedy=nearest(wanted, known))
    if option in options(wanted, dirs):
        print(options(wanted, dirs)[option].read_text(encoding="utf-8"), end="")
        return 0
    if option and wanted != ENCODER:  # encoder/text is a group as well
        remedy = nearest(option, options(wanted, dirs))
        raise UserError(f"there is no {wanted} called {option}", given=given.group, remedy=remedy)
    for group in [wanted] if wanted else known:
        print(f"{group}/{option or 'MODALITY'}" if group == ENCODER else group)
        for name, path in options(group, dirs).items():
            print(_entry(name, describe(path)))
    return 0


def _entry(name: str, text: str) -> str:
    """A line of a list; wrapped in a terminal, whole in a pipe."""
    width = _width(None)
    lines = [text] if width is None else textwrap.wrap(text, max(width - 19, 20)) or [""]
    return "\n".join(f"  {name if k == 0 else '':16} {line}" for k, line in enumerate(lines))


def _width(otherwise: _Otherwise) -> int | _Otherwise:
    """Columns of the terminal; ``otherwise`` where there is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else otherwise


def _doctor(words: list[str]) -> int:
    _Parser("doctor", "Does everything that mmrun needs work here?").parse_args(words)
    from mmrun.doctor import report

    text, well = report(_outputs())
    print(text)
    return 0 if well else 1


@contextlib.contextmanager
def _uncollected() -> Generator[None]:
    """No search for garbage: composing makes many objects and drops few (0.05 s of 0.4)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _outputs() -> Path:
    from mmrun.runs import outputs

    return outputs()


def _parse_trusting(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parsed words, and the packages that they say to trust; config folders go onto the module path."""
    parser.add_argument("--config-dir", metavar="DIR", help="the folder that the run was made with")
    parser.add_argument("--trust", metavar="PKG", help="a package that _target_ may name")
    config_dirs, trust, rest = _take_trust(words)
    given = parser.parse_args(rest)
    from mmrun.options import add_to_path, packages_beside

    add_to_path(config_dirs)
    return given, [*trust, *packages_beside(config_dirs)]


def _take_trust(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(--config-dir folders, --trust packages, the other words)."""
    taken: dict[str, list[str]] = {"--config-dir": [], "-cd": [], "--trust": []}
    rest: list[str] = []
    iterator = iter(words)
    for word in iterator:
        flag, equals, value = word.partition("=")
        if flag not in taken:
            rest.append(word)
            continue
        found = value if equals else next(iterator, None)
        if not found:
            raise UserError(f"{flag} wants a value", given=word)
        taken[flag].append(found)
    return [*taken["--config-dir"], *taken["-cd"]], taken["--trust"], rest


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "eval": _eval,
    "predict": _predict,
    "show": _show,
    "list": _list,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
