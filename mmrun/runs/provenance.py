"""What code ran: versions of the packages that matter, commit and changes of the mmrun checkout."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "mmrun",
    "torch",
    "pytorch_lightning",
    "hydra-core",
    "omegaconf",
    "numpy",
    "wandb",
)
DIFF_BYTES = 1_000_000
_CODE = ("mmrun", "conf")  # untracked files elsewhere change no run
_ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def versions() -> dict[str, str | None]:
    """{package: version or None}, python among them; reads metadata and imports nothing."""
    import importlib.metadata  # 0.05 s, for who only looks

    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


@functools.cache
def commit(root: Path = _ROOT) -> dict[str, Any]:
    """{commit, dirty} of the checkout at ``root``; both None where it is no checkout of its own.

    Asked once per process: what counts is the code that was there when the process started.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed mmrun may lie inside somebody else's repository.
    if top is None or Path(top.strip()).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "commit": head.strip() if head else None,
        "dirty": None if changed is None else bool(changed.strip() or untracked(root)),
    }


def untracked(root: Path = _ROOT) -> list[str]:
    """Files of code and conf that git does not know yet, such as a new fusion."""
    listed = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *_CODE)
    return [name for name in (listed or "").split("\0") if name]


def code_diff(root: Path = _ROOT) -> str:
    """How the checkout differs from its commit, untracked code included, at most 1 MB."""
    text = _git(root, "diff", "--no-color", "--no-ext-diff", "HEAD") or ""
    for name in untracked(root):
        if len(text) > DIFF_BYTES:
            break
        text += _git(root, "diff", "--no-color", "--no-index", "--", "/dev/null", name) or ""
    data = text.encode(errors="replace")
    if len(data) <= DIFF_BYTES:
        return text
    return data[:DIFF_BYTES].decode(errors="ignore") + f"\n# cut at {DIFF_BYTES} bytes\n"


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    # diff --no-index says 1 when files differ, which is what it was asked.
    return done.stdout if done.returncode == 0 or "--no-index" in arguments else None
