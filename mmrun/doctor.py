"""Does everything that mmrun needs work here? One line per question, each with its remedy. No torch.

torch is asked in a child process, since importing it takes seconds, and may hang or crash where a driver is broken.
"""

from __future__ import annotations

import json
import locale
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from mmrun import tracking
from mmrun.errors import UserError

TORCH_TIMEOUT_S = 60
LEAST_FREE_GB = 1.0
LEAST_PYTHON = (3, 11)
PACKAGES = ("pytorch-lightning", "hydra-core", "wandb")
ASK_TORCH = """\
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "built": torch.version.cuda,
    "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if cuda else [],
    "threads": torch.get_num_threads(),
    "right": float((torch.ones(8, 8) @ torch.ones(8, 8)).sum()) == 512.0,
}))
"""

State = Literal["ok", "warn", "fail"]


class Line(NamedTuple):
    """One answer: how it stands, what was asked, what was found, and what to do about it."""

    state: State
    what: str
    found: str
    remedy: str = ""


def report(outputs: Path) -> tuple[str, bool]:
    """(the answers as text, whether mmrun can work here).

    Args:
        outputs: the root of all runs; it is tried, and left as it was.
    """
    lines = [
        _python(),
        Line("ok", "platform", f"{platform.platform()}, {_cpus()} CPUs"),
        Line(
            "ok",
            "mmrun",
            f"{_version('mmrun') or 'not installed, run'} from {Path(__file__).parent}",
        ),
        *_torch(),
        *(_package(name) for name in PACKAGES),
        *_extras(),
        _writable(outputs),
        _space(outputs),
        *_wandb(),
        _encoding(),
        _terminal(),
    ]
    well = all(line.state != "fail" for line in lines)
    return "\n".join([*map(_text, lines), "", _verdict(lines)]), well


def _text(line: Line) -> str:
    remedy = f"\n{'':25}{line.remedy}" if line.remedy else ""
    return f"{line.state:5} {line.what:18} {line.found}{remedy}"


def _verdict(lines: Iterable[Line]) -> str:
    failed = [line.what for line in lines if line.state == "fail"]
    if failed:
        return f"mmrun cannot work here yet: {', '.join(failed)}"
    return "mmrun can work here"


def _python() -> Line:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Line("fail", "python", found, f"Use Python {least} or newer.")
    return Line("ok", "python", found)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch() -> Iterator[Line]:
    """Version, a product that must be right, GPUs; from a child process."""
    again = "Install it again; scripts/setup does."
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Line("fail", "torch", f"no answer within {TORCH_TIMEOUT_S} s", again)
        return
    except OSError as error:
        yield Line("fail", "torch", f"cannot be asked: {error}", again)
        return
    try:
        found = json.loads(asked.stdout.strip().rpartition("\n")[2])
    except ValueError:
        reason = (asked.stderr.strip().splitlines() or [f"it ended with {asked.returncode}"])[-1]
        yield Line("fail", "torch", reason[:200], again)
        return
    built = f"CUDA {found['built']}" if found["built"] else "for CPUs only"
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    if found["right"]:
        yield Line("ok", "torch", f"{found['version']}, built {built}, {threads} by default")
    else:
        yield Line("fail", "torch", f"{found['version']} cannot multiply", again)
    if found["gpus"]:
        yield Line("ok", "GPUs", ", ".join(found["gpus"]))
    elif found["built"] and shutil.which("nvidia-smi"):
        remedy = "Does nvidia-smi list a GPU, and is the driver new enough for this CUDA?"
        yield Line("warn", "GPUs", "none that torch can use", remedy)
    else:
        yield Line("ok", "GPUs", "none; training is on the CPU")


def _package(name: str) -> Line:
    version = _version(name)
    if version is None:
        return Line("fail", name, "not installed", f"pip install {name}")
    return Line("ok", name, version)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> Iterator[Line]:
    """The extras that the package names, each installed whole, in part or not."""
    try:
        known = metadata.metadata("mmrun").get_all("Provides-Extra") or []
        requirements = metadata.requires("mmrun") or []
    except metadata.PackageNotFoundError:
        remedy = "Run `pip install -e .` in the checkout."
        yield Line("warn", "extras", "unknown: mmrun runs from a folder, uninstalled", remedy)
        return
    for extra in known:
        wanted = [
            match[0]
            for text in requirements
            if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", text)
            and (match := re.match(r"[\w.-]+", text))
        ]
        absent = [name for name in wanted if _version(name) is None]
        if absent:
            found = f"without {', '.join(absent)}"
            yield Line("ok", f"extra {extra}", found, f"For it: pip install 'mmrun[{extra}]'")
        else:
            yield Line("ok", f"extra {extra}", "installed")


def _writable(outputs: Path) -> Line:
    """Can a run directory be made? Tried in the nearest folder that exists, and taken away again."""
    folder = _existing(outputs)
    try:
        with tempfile.TemporaryDirectory(prefix=".mmrun-doctor-", dir=folder) as tried:
            (Path(tried) / "file").write_text("mmrun", encoding="utf-8")
    except OSError as error:
        remedy = "Name another folder with outputs=DIR or MMRUN_OUTPUTS=DIR."
        return Line("fail", "outputs", f"{outputs.absolute()}: {error.strerror or error}", remedy)
    made = "writable" if folder == outputs.absolute() else "will be made"
    return Line("ok", "outputs", f"{outputs.absolute()}, {made}")


def _space(outputs: Path) -> Line:
    free = shutil.disk_usage(_existing(outputs)).free / 1e9
    found = f"{free:.1f} GB free"
    if free < LEAST_FREE_GB:
        return Line(
            "warn", "disk", found, "Runs keep checkpoints: make room, or name another folder."
        )
    return Line("ok", "disk", found)


def _existing(path: Path) -> Path:
    """The path, or the nearest of its parents that is there."""
    return next(
        (each for each in (path.absolute(), *path.absolute().parents) if each.exists()), path
    )


def _wandb() -> Iterator[Line]:
    server = tracking.base_url()
    if tracking.has_key():
        yield Line("ok", "W&B key", f"found for {server}")
    else:
        remedy = "Runs are logged offline. To upload: wandb login, or set WANDB_API_KEY."
        yield Line("ok", "W&B key", f"none for {server}", remedy)
    try:
        mode, _ = tracking.mode("auto")
    except UserError as error:
        yield Line("warn", "W&B mode", str(error))
        return
    given = os.environ.get("WANDB_MODE")
    yield Line(
        "ok", "W&B mode", f"{mode} with logger=auto" + (f" (WANDB_MODE={given})" if given else "")
    )


def _encoding() -> Line:
    found = f"{sys.stdout.encoding or 'none'}, locale {locale.setlocale(locale.LC_CTYPE) or 'C'}"
    if (sys.stdout.encoding or "").lower().replace("-", "") != "utf8":
        return Line("warn", "text", found, "Some signs are shown as ?; PYTHONUTF8=1 mends it.")
    return Line("ok", "text", found)


def _terminal() -> Line:
    if not sys.stdout.isatty():
        return Line("ok", "terminal", "none: one line per validation in place of a progress bar")
    size = shutil.get_terminal_size()
    found = f"{os.environ.get('TERM', 'unknown')}, {size.columns} x {size.lines}"
    if os.environ.get("TERM") == "dumb":
        return Line("warn", "terminal", found, "Set TERM for a progress bar and colours.")
    return Line("ok", "terminal", found)
