"""Which GPUs may points of this machine use? Asked of the environment and of nvidia-smi: torch is not imported for it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrun.errors import UserError

SMI = ("nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader")
SMI_S = 10.0  # seconds; a sleeping driver takes some
_ENTRY = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one.

    Args:
        entry: what CUDA_VISIBLE_DEVICES calls it.
        key: what every process of this machine calls it: its UUID where that is known.
    """

    entry: str
    key: str


def choose(wanted: Literal["auto"] | Sequence[int]) -> list[Gpu]:
    """The GPUs that ``launcher.gpus`` names: numbers are positions among those that this process may see.

    Raises:
        UserError: a number that is none of them, or one that is named twice.
    """
    if wanted != "auto" and not wanted:
        return []
    present = visible()
    if wanted == "auto":
        return present
    if len(set(wanted)) < len(wanted):
        raise UserError("launcher.gpus names a GPU twice", given=list(wanted), remedy="Once.")
    if min(wanted) < 0 or max(wanted) >= len(present):
        here = len(present)
        raise UserError(
            "launcher.gpus names a GPU that is not here",
            given=list(wanted),
            remedy=f"There are {here}: give numbers from 0 to {here - 1}, or auto."
            if here
            else "There are none: nvidia-smi and CUDA_VISIBLE_DEVICES say which there are.",
        )
    return [present[number] for number in wanted]


def visible() -> list[Gpu]:
    """The GPUs that this process may see, as CUDA_VISIBLE_DEVICES or the driver says."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None and not _entries(listed):
        return []
    known = _known()
    if listed is None:
        return [Gpu(uuid, uuid) for uuid in known.values()] or _device_files()
    return [Gpu(entry, _key(entry, known)) for entry in _entries(listed)]


def _entries(listed: str) -> list[str]:
    """Up to the first that is none, as CUDA reads it."""
    found: list[str] = []
    for each in listed.split(","):
        if _ENTRY.fullmatch(each.strip()) is None:
            break
        found.append(each.strip())
    return found


def _key(entry: str, known: dict[str, str]) -> str:
    if entry in known:
        return known[entry]
    return next((uuid for uuid in known.values() if uuid.startswith(entry)), entry)


def _known() -> dict[str, str]:
    """{number: UUID} of all GPUs, from nvidia-smi; empty where there is none."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=SMI_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.partition(",") for line in done.stdout.splitlines()]
    return {index.strip(): uuid.strip() for index, comma, uuid in rows if comma}


def _device_files() -> list[Gpu]:
    """By the driver's own files: a container may have those and no nvidia-smi."""
    numbers = sorted(
        int(path.name.removeprefix("nvidia"))
        for path in Path("/dev").glob("nvidia[0-9]*")
        if path.name.removeprefix("nvidia").isdigit()
    )
    return [Gpu(str(number), str(number)) for number in numbers]
