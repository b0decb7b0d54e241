"""The options of every config group: the YAML files of conf/ and of the user's own folders. No Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrun.errors import UserError

ENCODER = "encoder"  # the one group that is chosen per modality
COMMON = {
    "clip": "clipping"
}  # group: the file in conf/ with the settings that all its options have


def conf_dir() -> Path:
    """The folder of configs: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(
        "mmrun's configs are not installed", given=package / "conf", remedy="Reinstall mmrun."
    )


def checked_dirs(config_dirs: Sequence[str]) -> tuple[str, ...]:
    """The user's own config folders, absolute, each once.

    Raises:
        UserError: one that is not there, or has no group in it, or an option whose name is taken.
    """
    dirs = existing_dirs(config_dirs)
    taken: dict[tuple[str, str], Path] = {}
    for folder in (conf_dir(), *map(Path, dirs)):
        for path in sorted(folder.glob("*/*.yaml")) if dirs else ():
            other = taken.setdefault((path.parent.name, path.stem), path)
            if other != path:
                raise UserError(
                    f"there are two options called {path.parent.name}={path.stem}",
                    given=f"{other} and {path}",
                    remedy="Give yours another name: it adds to mmrun's options and replaces none.",
                )
    return dirs


def existing_dirs(config_dirs: Sequence[str]) -> tuple[str, ...]:
    """The user's own config folders, absolute, each once, whatever options are in them.

    Raises:
        UserError: one that is not there, or has no group in it.
    """
    remedy = "Give a folder with groups in it, e.g. DIR/fusion/mine.yaml."
    for folder in config_dirs:
        if not Path(folder).is_dir():
            raise UserError("--config-dir is no folder", given=folder, remedy=remedy)
        if not any(Path(folder).glob("*/*.yaml")):
            raise UserError("--config-dir has no options in it", given=folder, remedy=remedy)
    return tuple(dict.fromkeys(str(Path(folder).resolve()) for folder in config_dirs))


def groups(config_dirs: Sequence[str] = ()) -> list[str]:
    """Names of all groups."""
    found = {
        entry.name
        for folder in (conf_dir(), *map(Path, config_dirs))
        for entry in folder.iterdir()
        if entry.is_dir() and any(entry.glob("*.yaml"))
    }
    return sorted(found)


def options(group: str, config_dirs: Sequence[str] = ()) -> dict[str, Path]:
    """{option: its YAML file} of a group; mmrun's own come first."""
    found: dict[str, Path] = {}
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def common(group: str) -> Path | None:
    """The YAML file of the settings that every option of a group has beside its own; None where there are none."""
    return conf_dir() / f"{COMMON[group]}.yaml" if group in COMMON else None


def describe(path: Path) -> str:
    """The first comment line of a YAML file: what the option is."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            text = line.strip()
            if text.startswith("# @"):
                continue
            return text.lstrip("# ") if text.startswith("#") else ""
    return ""
