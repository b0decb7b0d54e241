"""Which words could come next on a command line? ``eval "$(mmrun -sc install=bash)"``; zsh and fish too. No torch.

What mmrun takes is asked where it is said, so that nothing is listed twice: verbs in ``cli.VERBS``, flags and kinds of
words in each verb's ``--help``, options in the folders of configs, keys in the config that the words so far compose.
Candidates have the form of Hydra's own completion (``clip=``, ``clip.``), which is not used itself: it finds no
modality after ``encoder/`` and nothing after a comma, offers keys that mmrun does not take (``hydra.``, ``_target_``),
and composes for every TAB, where most need no Hydra at all (0.06 s of CPU against 0.45).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from mmrun.errors import UserError
from mmrun.options import ENCODER, checked_dirs, conf_dir, groups, options
from mmrun.shells import SCRIPTS
from mmrun.spec import MULTIRUN, SWEEP_WORDS, Rerun

Verbs = Mapping[str, Callable[[list[str]], int]]

ACTIONS = ("install", "uninstall", "query")
TRAIN = "train"
CONFIG_DIR = ("--config-dir", "-cd")
_PLAIN = re.compile(r"[\w.+/-]+")  # a value that needs no quotes
_FOR_BASH = re.compile(r"([^\w@%+=:,./~-])")  # bash puts a candidate on the line as it is


def main(words: Sequence[str], verbs: Verbs, outputs: Path) -> int:
    """``mmrun -sc ACTION=SHELL``; the exit code.

    Args:
        words: what follows ``-sc``.
        verbs: {verb: what runs it}; each prints its help for ``--help``.
        outputs: the root of all runs.

    Raises:
        UserError: another action or shell.
    """
    action, _, shell = " ".join(words).partition("=")
    if action not in ACTIONS or shell not in SCRIPTS:
        known = ", ".join(f"install={each}" for each in SCRIPTS)
        raise UserError(
            "-sc takes the name of a shell",
            given=" ".join(words) or "nothing",
            remedy=f"Write one of {known} (uninstall= takes it away).",
        )
    if action != "query":
        print(SCRIPTS[shell][action == "uninstall"])
        return 0
    for each in candidates(os.environ.get("COMP_LINE", ""), verbs, outputs):
        print(_FOR_BASH.sub(r"\\\1", each) if shell == "bash" else each)
    return 0


def candidates(line: str, verbs: Verbs, outputs: Path) -> list[str]:
    """What the last word of ``line`` could become, sorted; nothing where the line makes no sense. Never raises.

    Args:
        line: the command line up to the cursor, the program first.
        verbs: as for ``main``.
        outputs: the root of all runs.
    """
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(Exception, SystemExit):
        *words, current = _split(line)
        found = set(_next(words, current, verbs, outputs))
        return sorted(each for each in found if each.startswith(current) and not _spaced(each))
    return []


def _split(line: str) -> list[str]:
    """Words after the program, the last one unfinished, maybe empty and maybe in a quote."""
    for quote in ("", "'", '"'):
        with contextlib.suppress(ValueError):
            words = shlex.split(line + quote)
            break
    else:
        raise ValueError(line)
    if not quote and (not line or line[-1].isspace()):
        words.append("")
    while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):  # NAME=VALUE mmrun ...
        words.pop(0)
    return words[1:]


def _spaced(text: str) -> bool:
    return any(each.isspace() for each in text)


def _next(words: list[str], current: str, verbs: Verbs, outputs: Path) -> Iterable[str]:
    if not words:
        return [*verbs, *(["--help", "--version", "-sc"] if current[:1] == "-" else [])]
    verb, *done = words
    if verb not in verbs:
        return []
    text = _help(verbs[verb])
    if verb == TRAIN:
        return _next_override(done, current, text)
    return _next_of_verb(done, current, text, outputs)


def _help(verb: Callable[[list[str]], int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        verb(["--help"])
    return said.getvalue()


def _flags(text: str) -> set[str]:
    """The flags that a help names."""
    return {"--help", *re.findall(r"(?<![\w-])(--[a-z][\w-]*|-m\b)", text)}


# train


def _next_override(done: list[str], current: str, text: str) -> Iterable[str]:
    folders, overrides, open_flag = _take_flags(done)
    if open_flag in CONFIG_DIR:
        return []  # a folder: the shell knows best
    if open_flag:
        return _hydra_flags()[open_flag]
    if current[:1] == "-":
        return {*_flags(text), *MULTIRUN}
    dirs = checked_dirs(folders)
    key, equals, value = current.partition("=")
    sign = key[: len(key) - len(key.lstrip("+~"))]
    key = key[len(sign) :]
    head = key.split("/", 1)[0]
    if equals and "." not in key and head in _choosable(dirs):
        return (f"{sign}{key}={each}" for each in _options_after(value, options(head, dirs)))
    if not equals and "." not in key and "/" not in key:
        found = _first_words(dirs)
        given = {each.partition("=")[0] for each in overrides}
        return (f"{sign}{each}" for each in found if each.rstrip("=") not in given)
    if equals and key == "rerun":
        return (f"{key}={each}" for each in get_args(Rerun))
    config = _composed(overrides, dirs)
    if "/" in key:
        names = config[ENCODER] if head == ENCODER and not equals else ()
        return (f"{sign}{ENCODER}/{name}=" for name in names)
    if equals:
        return (f"{sign}{key}={each}" for each in _values(_at(config, key.split("."))))
    *path, _ = key.split(".")
    return (f"{sign}{'.'.join([*path, name])}" for name in _names(_at(config, path)))


def _take_flags(done: list[str]) -> tuple[list[str], list[str], str]:
    """(folders of configs, overrides, the flag that still wants its value or nothing)."""
    folders: list[str] = []
    overrides: list[str] = []
    open_flag = ""
    for word in done:
        if open_flag in CONFIG_DIR:
            folders.append(word)
            open_flag = ""
        elif open_flag:
            open_flag = ""
        elif word[:1] == "-":
            flag, equals, value = word.partition("=")
            if flag in CONFIG_DIR and equals:
                folders.append(value)
            elif not equals and flag not in MULTIRUN:
                open_flag = flag if flag in CONFIG_DIR or _hydra_flags().get(flag) else ""
        else:
            overrides.append(word)
    return folders, overrides, open_flag


def _hydra_flags() -> dict[str, tuple[str, ...]]:
    from mmrun.compose import HYDRA_FLAGS

    return HYDRA_FLAGS


def _choosable(dirs: tuple[str, ...]) -> set[str]:
    return {*groups(), "experiment"} & {*groups(dirs)}


def _options_after(value: str, known: Iterable[str]) -> Iterator[str]:
    """``n`` -> none norm; ``none,n`` -> none,norm."""
    before, comma, _ = value.rpartition(",")
    given = before.split(",")
    yield from (f"{before}{comma}{each}" for each in known if each not in given)


def _first_words(dirs: tuple[str, ...]) -> Iterator[str]:
    """Groups and keys of the root, no composing: conf/config.yaml names them; and a sweep's own words."""
    import yaml

    root = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    for group in _choosable(dirs):
        yield f"{group}/" if group == ENCODER else f"{group}="
        if group != "experiment":  # its options set keys of other groups
            yield f"{group}."
    yield from (f"{key}=" for key in root if key not in ("defaults", "hydra"))
    yield from (f"{word}=" for word in SWEEP_WORDS)


def _composed(overrides: Iterable[str], dirs: tuple[str, ...]) -> dict[str, Any]:
    """The config that the words so far make; of a sweep, one of its points'."""
    from mmrun.compose import point

    single = [_one_value(each) for each in overrides]
    return point(
        [each for each in single if each.partition("=")[0] not in SWEEP_WORDS], dirs
    ).config


def _one_value(override: str) -> str:
    """``clip=none,0.5`` -> ``clip=0.5``, for lists tend to begin with none; a list in brackets is one value."""
    key, equals, value = override.partition("=")
    if re.match(r"(choice|range|glob|interval|tag)\(", value):
        inner = re.split(r"[(,)]", value)[1].strip("'\" ")
        return f"{key}{equals}{inner}" if _PLAIN.fullmatch(inner) else ""
    return override if re.search(r"[\[{('\"]", value) else f"{key}{equals}{value.split(',')[-1]}"


def _at(node: Any, path: Iterable[str]) -> Any:
    for part in path:
        node = node[part]
    return node


def _names(node: Any) -> Iterator[str]:
    for name, value in node.items() if isinstance(node, dict) else ():
        if not name.startswith("_"):
            yield f"{name}{'.' if isinstance(value, dict) else '='}"


def _values(value: Any) -> list[str]:
    """The value that stands there now, as one would type it."""
    if isinstance(value, bool):
        return ["false", "true"]
    plain = isinstance(value, str | int | float) and _PLAIN.fullmatch(str(value))
    return [str(value)] if plain else []


# The other verbs


def _next_of_verb(done: list[str], current: str, text: str, outputs: Path) -> Iterable[str]:
    """By the usage that argparse prints: which words a verb takes, and what the value of a flag is."""
    usage = " ".join("".join(text.split("\n\n", 1)[0].split(maxsplit=3)[3:]).split())
    kinds = dict(re.findall(r"(?<![\w-])(-{1,2}[\w-]+) ([^\s\[\]]+)", usage))
    rest = re.sub(r"\[?-{1,2}[\w-]+(?: [^\s\[\]]+)?\]?", "", usage)
    takes = [each for each in re.sub(r"[\[\]]", " ", rest).split() if each != "..."]
    open_flag, n_words = "", 0
    for word in done:
        if open_flag:
            open_flag = ""
        elif word[:1] == "-":
            open_flag = word if word in kinds else ""
        else:
            n_words += 1
    if not open_flag and current[:1] == "-":
        return _flags(text)
    if not open_flag and n_words >= len(takes) and "..." not in rest:
        return []
    kind = kinds[open_flag] if open_flag else ["", *takes][min(n_words + 1, len(takes))]
    return _of_kind(kind, current, done, outputs)


def _of_kind(kind: str, current: str, done: list[str], outputs: Path) -> Iterable[str]:
    if kind.startswith("{"):
        return kind.strip("{}").split(",")
    if kind.islower():  # a word that stands for itself, as in --select val
        return [kind]
    if kind == "FORMAT":
        from mmrun.compare.formats import FORMATS

        return FORMATS
    if kind == "GROUP":
        dirs = checked_dirs(_take_flags(done)[0])
        group, slash, _ = current.partition("/")
        return (f"{group}/{each}" for each in options(group, dirs)) if slash else groups(dirs)
    if kind in ("RUN", "SWEEP", "RUN|SWEEP", "PATH"):
        return _runs(current, kind, outputs)
    return []  # a folder or file: the shell knows best


def _runs(current: str, kind: str, outputs: Path) -> Iterator[str]:
    """Names below outputs; of a sweep's points only when the sweep is there already."""
    from mmrun.runs.finder import LAST
    from mmrun.runs.reader import list_runs

    for run in list_runs(outputs):
        yield LAST
        first, *point = run.relative_to(outputs).parts
        if not point:
            yield from [first] if kind != "SWEEP" else []
        elif kind != "RUN":
            yield first
        if point and kind != "SWEEP":
            yield f"{first}/{point[0]}" if current.startswith(f"{first}/") else f"{first}/"
