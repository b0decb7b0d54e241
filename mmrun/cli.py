"""The command line: one verb, one function; each imports what it needs when it is used.

``mmrun --help`` imports nothing but the standard library; only train, resume, eval and predict import torch.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mmrun import __version__
from mmrun.errors import UserError, nearest
from mmrun.exits import guarded, program, say, shown
from mmrun.signals import ending

if TYPE_CHECKING:
    from mmrun.launch.loop import Outcome
    from mmrun.spec import Sweep

HELP = """\
mmrun: train multimodal models with gradient clipping as a controlled variable

  mmrun train [GROUP=OPTION ...] [KEY=VALUE ...]   one run, e.g. mmrun train fusion=attention clip=0.5
  mmrun train -m clip=none,0.5,2 seeds=3           a sweep: every combination, three seeds each
  mmrun resume RUN|SWEEP [trainer.max_epochs=N]    continue an interrupted run or sweep
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

TRAIN_HELP = """\
mmrun train [-m] [GROUP=OPTION ...] [KEY=VALUE ...] [--config-dir DIR] [--dry-run]

  mmrun train                                      digits3, concat, AdamW, no clipping
  mmrun train fusion=attention clip=0.5            clip=NUMBER is the global norm law at NUMBER
  mmrun train clip=value_0.1 encoder/text=lstm optimizer=momentum optimizer.lr=0.1
  mmrun train dataset.use=[image,text] trainer.max_epochs=5 seed=1

  mmrun train -m clip=none,0.5,value_0.1 fusion=concat,attention seeds=3
  mmrun train experiment=first_look                a question with its sweep (mmrun list experiment)

  -m                 a sweep: every combination of the values; also seeds=N and experiments imply it.
                     sweep=NAME names its folder; the same command again trains what is not done.
                     rerun=stale: also what another version of the code made; rerun=true: all
  --dry-run          the points, their choices and steps, and stop
  --cfg job          print the composed config and stop (as Hydra does); --info defaults-tree
  --config-dir DIR   add your own options, DIR/GROUP/OPTION.yaml; _target_ may name modules beside DIR

Groups and their options: mmrun list. Settings of an option: mmrun list clip/norm. All: mmrun train --cfg job.
"""

DRY_RUN = "--dry-run"
MOST_ROWS = 50  # settings that the end of a sweep shows
MOST_POINTS = 20  # points that it shows one by one, where settings have several
_Otherwise = TypeVar("_Otherwise", int, None)
RUN_HELP = "a path, a name or unique id prefix below outputs/, or last"
FORMAT_HELP = "table, md, csv, json or latex"


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
        from mmrun import completion

        with _uncollected():
            return completion.main(words[1:], VERBS, _outputs())
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
    with _uncollected(), ending():
        from mmrun import compose
        from mmrun.spec import MULTIRUN, Sweep

        if any(word.split("=", 1)[0] in compose.HYDRA_FLAGS for word in rest):
            compose.hydra_answers(rest, config_dirs)
            return 0
        flags = [word for word in rest if word.startswith("-")]
        for word in flags:
            if word not in (*MULTIRUN, DRY_RUN):
                remedy = nearest(word, (*MULTIRUN, DRY_RUN, *compose.HYDRA_FLAGS))
                raise UserError("train has no such flag", given=word, remedy=remedy)
        overrides = [word for word in rest if word not in flags]
        several = compose.is_sweep(rest, config_dirs)
        if several:
            sweep = compose.sweep(overrides, config_dirs)
        else:
            sweep = Sweep(name="", points=(compose.point(overrides, config_dirs),), axes={})
    if DRY_RUN in flags:
        return _dry_run(sweep)
    if several:
        return _sweep(sweep)
    (point,) = sweep.points
    from mmrun.trust import targets
    from mmrun.user_code import add_to_path

    add_to_path(point.config_dirs)
    with ending():
        from mmrun.train import main_exit_code, train

    # What stands in this command line is the user's own; it is trusted as the user is.
    record = train(point, trust=targets(point.config))
    from mmrun.compare.summary import summary

    print(summary(record))
    return main_exit_code(record)


def _sweep(sweep: Sweep) -> int:
    from mmrun import tracking
    from mmrun.launch import loop
    from mmrun.launch.executor import make_executor
    from mmrun.trust import targets
    from mmrun.user_code import add_to_path

    add_to_path(sweep.config_dirs)
    config = sweep.points[0].config
    trust = set[str]().union(*(targets(point.config) for point in sweep.points))
    executor = make_executor(config["launcher"], trust)
    _, line = tracking.mode(config["logger"]["mode"])  # no key where one is needed ends it here
    notes = [line] if line else []
    outputs = Path(config["outputs"])
    return _closing(loop.drive(sweep, outputs, executor, trust=trust, notes=notes))


def _dry_run(sweep: Sweep) -> int:
    from mmrun.launch.dry import lines

    for line in lines(sweep):
        print(line)
    return 0


def _closing(outcome: Outcome) -> int:
    from mmrun.launch import report

    for line in report.closing(outcome.records, outcome.refused, outcome.lost):
        say(line)
    where = shown(outcome.directory)
    say(f"{'sweep':8} {where}\n")
    from mmrun.compare import points, table

    best = report.winner(outcome.records)
    style: dict[str, Any] = {"width": _width(None), "color": _colored()}
    with contextlib.suppress(UserError):  # where every folder is gone there is nothing to compare
        comparison = table.compare([outcome.directory], outputs=outcome.directory.parent)
        runs = sum(len(group.rows) for group in comparison.groups)
        if len(outcome.records) <= MOST_POINTS and len(comparison.groups) < runs:
            say(points.text(outcome.records.values(), **style) + "\n")
        if len(comparison.groups) <= MOST_ROWS:
            say(table.text(comparison, **style, following="" if best else None))
        else:
            say(f"{'all':8} {program()} compare {shlex.quote(where)}")
    if best:
        say("\n" + "\n".join(best))
    return outcome.exit_code


def _resume(words: list[str]) -> int:
    parser = _Parser("resume", "Continue an interrupted run from its last checkpoint, or a sweep.")
    parser.add_argument("run", metavar="RUN|SWEEP", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. trainer.max_epochs=40"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs

    directory = runs.find_tree(given.run, _outputs())
    if (directory / runs.SWEEP_RECORD).is_file():
        return _resume_sweep(directory, given.changes, trust)
    directory = runs.find(given.run, _outputs())
    changes = compose.resumable(given.changes)
    from mmrun import point
    from mmrun.compare.summary import summary

    with ending():
        from mmrun.train import main_exit_code
    record = point.run(directory, resume=True, changes=changes, trust=trust)
    print(summary(record))
    return main_exit_code(record)


def _resume_sweep(sweep: Path, changes: Sequence[str], trust: Sequence[str]) -> int:
    if changes:
        raise UserError(
            "a sweep is resumed as it was recorded",
            given=" ".join(changes),
            remedy="Resume a single point with changes, or give the sweep's command with others.",
        )
    from mmrun import runs
    from mmrun.launch import loop
    from mmrun.launch.executor import make_executor
    from mmrun.launch.inline import Inline

    for record in runs.read_all([sweep]).values():
        if "launcher" in record["config"]:
            executor = make_executor(record["config"]["launcher"], trust)
            break
    else:
        executor = Inline(fail_fast=False)
    return _closing(loop.resume(sweep, executor, trust=trust))


def _eval(words: list[str]) -> int:
    parser = _Parser("eval", "Score a finished run once under other test conditions.")
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "changes", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. missing.test_rate=0.3"
    )
    given, trust = _parse_trusting(parser, words)
    from mmrun import compose, runs

    with ending():
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

    with ending():
        from mmrun.evaluate import predict
    directory = runs.find(given.run, _outputs())
    n, absent = predict(directory, given.input, given.output, trust=trust)
    if absent:
        print(f"no file for {', '.join(absent)}: taken as missing from every sample")
    print(f"{n} predictions written to {given.output}")
    return 0


def _suggest(words: list[str]) -> int:
    parser = _Parser(
        "suggest", "Thresholds worth trying, from the raw gradient norms that a run recorded."
    )
    parser.add_argument("run", metavar="RUN", nargs="?", default="last", help=RUN_HELP)
    parser.add_argument("--format", default="table", metavar="FORMAT", help=FORMAT_HELP)
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare import suggest

    found = suggest.suggest(runs.find(given.run, _outputs()))
    print(suggest.text(found, format=given.format, width=_width(None), color=_colored()))
    return 0


def _show(words: list[str]) -> int:
    parser = _Parser("show", "What a run was, how it went, and how to do it again.")
    parser.add_argument("run", metavar="RUN", nargs="?", default="last", help=RUN_HELP)
    given = parser.parse_args(words)
    from mmrun import runs
    from mmrun.compare.show import show

    print(show(runs.find(given.run, _outputs()), width=_width(100), color=_colored()))
    return 0


def _compare(words: list[str]) -> int:
    parser = _Parser(
        "compare",
        "Settings side by side: mean and sd over seeds, best first by validation, never by test.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="a run, a sweep, a folder of runs, a name or unique id prefix below outputs/, or last; "
        "all of outputs/ by default",
    )
    parser.add_argument(
        "--by",
        metavar="KEY,KEY",
        help="what makes a row, e.g. clip,optimizer.lr; by default everything that differs but the seeds",
    )
    parser.add_argument(
        "--select",
        metavar="val",
        help="of the settings of each row, report the one that is best on validation",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="accuracy, test/accuracy, test_last/loss, train_eval/accuracy, ...",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only these runs: clip=none,0.5 or status=finished or 'optimizer.lr>0.1'; may be repeated",
    )
    parser.add_argument("--format", default="table", metavar="FORMAT", help=FORMAT_HELP)
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="draw it too: .png, .svg or .pdf; a heat map over two keys of --by, or points over one",
    )
    given = parser.parse_args(words)
    with _uncollected():
        from mmrun.compare import table

        comparison = table.compare(
            given.paths,
            outputs=_outputs(),
            by=None if given.by is None else [key for key in given.by.split(",") if key],
            asked=given.metric,
            conditions=given.where,
            select=given.select,
        )
        text = table.text(comparison, format=given.format, width=_width(None), color=_colored())
        if given.figure is not None:
            from mmrun.compare import draw, figures

            draw.draw(figures.figure(comparison), given.figure)
        print(text)
        if given.figure is not None:
            print(f"figure: {given.figure}", file=sys.stderr)
    return 0


def _wandb(words: list[str]) -> int:
    parser = _Parser(
        "wandb",
        "sync: upload to W&B the runs that are on this machine only; done ones are left alone.",
    )
    parser.add_argument(
        "action", choices=["sync"], metavar="sync", help="upload what is not there yet"
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help=f"a folder, a sweep or a run ({RUN_HELP}); all without",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded")
    given = parser.parse_args(words)
    from mmrun.wandb_sync import sync

    def say(line: str) -> None:
        print(line, flush=True)

    return sync(given.paths, _outputs(), say, dry_run=given.dry_run)


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
    from mmrun.options import ENCODER, checked_dirs, common, describe, groups, options

    dirs = checked_dirs(given.config_dir)
    known = groups(dirs)
    wanted, _, option = (given.group or "").partition("/")
    if given.group is not None and wanted not in known:
        raise UserError("there is no such group", given=given.group, remedy=nearest(wanted, known))
    if option in options(wanted, dirs):
        files = (options(wanted, dirs)[option], common(wanted))
        print("\n".join(each.read_text(encoding="utf-8") for each in files if each), end="")
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


def _colored() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


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
    from mmrun.options import existing_dirs
    from mmrun.user_code import add_to_path, packages_beside

    dirs = existing_dirs(config_dirs)
    add_to_path(dirs)
    return given, [*trust, *packages_beside(dirs)]


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
    "suggest": _suggest,
    "show": _show,
    "compare": _compare,
    "wandb": _wandb,
    "list": _list,
    "doctor": _doctor,
}

if __name__ == "__main__":
    sys.exit(main())
