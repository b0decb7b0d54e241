"""The modules beside a user's config folders: put on the module path, here and in children, and what is wrong with them."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Collection, Iterable
from pathlib import Path

from mmrun.errors import nearest

_OWN = Path(__file__).resolve().parent
_IMPORTS = re.compile(r"importlib|[/\\\\]hydra[/\\\\]")
added_to_path: list[
    str
] = []  # folders of modules that this process has been given, for its children


def add_to_path(config_dirs: Collection[str]) -> None:
    """Make modules beside the user's config folders importable, after everything else."""
    add_folders(str(Path(folder).resolve().parent) for folder in config_dirs)


def add_folders(folders: Iterable[str]) -> None:
    """Make the modules in these folders importable, after everything else."""
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
        if folder not in added_to_path:
            added_to_path.append(folder)


def packages_beside(config_dirs: Collection[str]) -> list[str]:
    """Names of the modules and packages that lie beside the user's config folders."""
    found: set[str] = set()
    for folder in config_dirs:
        parent = Path(folder).resolve().parent
        found |= {path.stem for path in parent.glob("*.py")}
        found |= {path.parent.name for path in parent.glob("*/__init__.py")}
    return sorted(found)


def child_environment() -> dict[str, str]:
    """The environment of processes that run ``python -m mmrun.point``: they find the modules that this one does.

    ``python -m`` would put the working directory, and PYTHONPATH the folder of a user's modules, before Python's own
    library: a random.py of the user's would take the place of Python's. So those folders go to ``--path``.
    """
    home = _OWN.parent
    installed = home.name in ("site-packages", "dist-packages")
    paths = [os.environ.get("PYTHONPATH"), None if installed else str(home)]
    return {
        **os.environ,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def why_not_imported(target: str, error: BaseException) -> str:
    """Why the import of ``target`` ended in ``error``: the file and line at fault, or the module that hides the user's.

    Args:
        target: a dotted path, ``myfusion.Fusion``.
        error: what the import raised, whatever it was raised from.
    """
    hidden = _hidden(target.split(".", 1)[0])
    if hidden:
        return hidden
    while not _frames(error) and error.__cause__ is not None:
        error = error.__cause__
    frames = _frames(error)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    if isinstance(error, SyntaxError):
        return f"{error.filename} line {error.lineno}: {type(error).__name__}: {error.msg}"
    if frames:
        return f"{frames[-1].filename} line {frames[-1].lineno}: {said}"
    if isinstance(error, ModuleNotFoundError) and error.name == target.split(".", 1)[0]:
        beside = f", nor in {', '.join(added_to_path)}" if added_to_path else ""
        return f"No module named {error.name!r} is installed{beside}"
    return _not_in_it(target) or " ".join(str(error).split()).removesuffix(".")


def _not_in_it(target: str) -> str:
    """The sentence for a module that was imported, and has no such name in it."""
    parts = target.split(".")
    for k in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:k]))
        if module is not None:
            file = getattr(module, "__file__", None) or module.__name__
            classes = [name for name, each in vars(module).items() if isinstance(each, type)]
            return f"{file} has no {parts[k]}. {nearest(parts[k], classes)}".removesuffix(".")
    return ""


def _hidden(name: str) -> str:
    """The sentence for a module of the user's in whose place another one of that name is found."""
    for folder in map(Path, added_to_path):
        for mine in (folder / f"{name}.py", folder / name / "__init__.py"):
            found = sys.modules.get(name)
            if mine.is_file() and found is not None:
                there = getattr(found, "__file__", None) or "part of Python itself"
                if str(there) != str(mine):
                    return (
                        f"{mine} is hidden by the {name} that is {there}; give yours another name"
                    )
    return ""


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    """Where an import failed: frames of the user's code, else of any but those that import it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if Path(each.filename).is_relative_to(_OWN)]
    others = [each for each in frames if each not in own and not _IMPORTS.search(each.filename)]
    users = [
        each
        for each in others
        if any(Path(each.filename).is_relative_to(folder) for folder in added_to_path)
    ]
    return users or others
