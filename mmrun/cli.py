"""The command line: one verb, one function; each imports what it needs when it is used.

``mmrun --help`` imports nothing but the standard library; only train, resume, eval and predict import torch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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
  mmrun list [GROUP]                               what there is to choose from
  mmrun doctor                                     python, torch, devices, write access, W&B key

RUN is a path, a name or unique id prefix below outputs/, or last. mmrun VERB --help says more.
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

Groups and their options: mmrun list. Keys: mmrun train --cfg job.
"""

HYDRA_FLAGS = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--package", "-p", "--resolve")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _dispatch(words))


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"mmrun {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        raise UserError("there is no such command", given=words[0], remedy=nearest(words[0], VERBS))
    return verb(words[1:])


def _train(words: list[str]) -> int:
    if any(word in ("-h", "--help") for word in words):
        print(TRAIN_HELP, end="")
        return 0
    config_dirs, _, rest = _take_trust(words)
    from mmrun import compose
    from mmrun.point import add_to_path

    if any(word.split("=", 1)[0] in HYDRA_FLAGS for word in rest):
        compose.hydra_answers(rest, config_dirs)
        return 0
    for word in rest:
        if word in ("-m", "--multirun"):
            raise UserError("sweeps are not part of this version", given=word)
        if word.startswith("-"):
            raise UserError("train has no such flag", given=word, remedy="See mmrun train --help.")
    point = compose.point(rest, config_dirs)
    add_to_path(point.config_dirs)
    from mmrun.build import targets
    from mmrun.train import main_exit_code, train

    # What stands in this command line is the user's own; it is trusted as the user is.
    record = train(point, trust=targets(point.config))
    from mmrun.compare.summary import summary

    print(summary(record))
    return main_exit_code(record)


def _resume(words: list[str]) -> int:
    parser = _parser("resume", "Continue an interrupted run from its last checkpoint.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="e.g. trainer.max_epochs=40")
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs
    from mmrun.compare.summary import summary
    from mmrun.train import main_exit_code

    directory = runs.find(given.run, _outputs())
    changes = compose.resumable(given.changes)
    from mmrun import point

    record = point.run(directory, resume=True, changes=changes, trust=trust)
    print(summary(record))
    return main_exit_code(record)


def _eval(words: list[str]) -> int:
    parser = _parser("eval", "Score a finished run once under other test conditions.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "changes", nargs="*", metavar="KEY=VALUE", help="e.g. missing.test_rate=0.3"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs
    from mmrun.evaluate import evaluate

    directory = runs.find(given.run, _outputs())
    path, scores = evaluate(directory, compose.changes(given.changes), trust=trust)
    for name, value in scores.items():
        print(f"{name:24} {value:.4f}")
    print(f"written to {path}")
    return 0


def _predict(words: list[str]) -> int:
    parser = _parser("predict", "Use a finished run on new samples.")
    parser.add_argument("run", metavar="RUN")
    parser.add_argument(
        "--input",
        required=True,
        type=Path,
        metavar="DIR",
        help="a folder with one MODALITY.npy per modality, samples first",
    )
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="a .csv or .npz file"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import runs
    from mmrun.evaluate import predict

    directory = runs.find(given.run, _outputs())
    n = predict(directory, given.input, given.output, trust=trust)
    print(f"{n} predictions written to {given.output}")
    return 0


def _show(words: list[str]) -> int:
    parser = _parser("show", "What a run was, how it went, and how to do it again.")
    parser.add_argument("run", metavar="RUN", nargs="?", default="last")
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare.show import show

    print(show(runs.find(given.run, _outputs())))
    return 0


def _list(words: list[str]) -> int:
    parser = _parser("list", "The options of every group, or of one.")
    parser.add_argument("group", metavar="GROUP", nargs="?")
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR")
    given = parser.parse_args(words)
    from mmrun.options import describe, groups, options

    known = groups(given.config_dir)
    if given.group is not None and given.group.split("/", 1)[0] not in known:
        raise UserError("there is no such group", given=given.group, remedy=nearest(given.group, known))
    for group in known if given.group is None else [given.group.split("/", 1)[0]]:
        print(group)
        for option, path in options(group, given.config_dir).items():
            print(f"  {option:16} {describe(path)}")
    return 0


def _doctor(words: list[str]) -> int:
    _parser("doctor", "Does everything that mmrun needs work here?").parse_args(words)
    from mmrun.doctor import report

    text, well = report(_outputs())
    print(text)
    return 0 if well else 1


def _outputs() -> Path:
    return Path(os.environ.get("MMRUN_OUTPUTS", "outputs"))


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mmrun {verb}", description=description)


def _parse_trusting(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parsed words, and the packages that they say to trust; config folders go onto the module path."""
    parser.add_argument("--config-dir", metavar="DIR", help="the folder that the run was made with")
    parser.add_argument("--trust", metavar="PKG", help="a package that _target_ may name")
    config_dirs, trust, rest = _take_trust(words)
    given = parser.parse_args(rest)
    from mmrun.point import add_to_path, packages_beside

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
