"""Weights & Biases: decide online or offline before anything starts, start a run, end it.

W&B never ends a training and never asks a question: without a key ``auto`` logs offline, an
unreachable server falls back to offline once, each said in one line; what a server does not take at
the end stays on disk for ``mmrun wandb sync``.
wandb is imported inside functions (0.5 s), and no key passes through here: wandb finds it itself.
"""

from __future__ import annotations

import configparser
import math
import netrc
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from mmrun.errors import UserError, nearest
from mmrun.exits import program

if TYPE_CHECKING:
    from wandb import Run

Mode = Literal["online", "offline", "none"]
OPTIONS = ("auto", "wandb", "offline", "none")
PROJECT = "mmrun"
STEP = "trainer/global_step"  # the name that Lightning's WandbLogger logs the step under
# How long a server may take to answer at the start, and again to take the rest at the end. wandb
# needs a second or two besides: a dead server costs 17 s, measured.
TIMEOUT_S = 15.0
UPLOADED = ".synced"  # suffix of the marker that ``wandb sync`` leaves beside a file, and reads
# wandb 0.31 calls its cloud by a new name and still takes a netrc entry of the old one.
CLOUD = "https://api.wandb.ai"
_CLOUD_HOSTS = ("api.forge.coreweave.com", "forge.coreweave.com", "api.wandb.ai")
# First parts of logged names, but for val/. wandb 0.31 takes any one of the patterns that match a
# name, and not the same one every time: so a "*" beside "val/*" would lose its minimum now and then.
_PREFIXES = (
    *("train", "test", "test_last", "train_eval", "grad", "update", "clip", "feature", "theory"),
    *("lr", "balance", "missing"),
)
_SUMMARY = ("min", "max", "last")
# Servers that did not answer this process: the next points of a worker do not wait for them again.
_unreachable: set[str] = set()
_active: set[str] = set()


@dataclass(frozen=True, kw_only=True)
class Options:
    """conf/logger: what a user may say about W&B."""

    mode: str
    project: str | None = PROJECT
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()


def mode(option: str) -> tuple[Mode, str]:
    """(mode, one line to print or "") for the logger option; asks nobody and imports no wandb.

    ``auto`` is online where a key is found for the server (``WANDB_BASE_URL``): ``WANDB_API_KEY``,
    ``WANDB_IDENTITY_TOKEN_FILE`` or a netrc entry (``NETRC``); else offline. ``WANDB_MODE`` set to
    offline or disabled holds for ``auto`` and ``wandb``.

    Args:
        option: one of ``OPTIONS``; ``wandb`` insists on a key.

    Raises:
        UserError: ``wandb`` without a key, a server's address that is none, or an unknown option.
    """
    if option not in OPTIONS:
        raise UserError("there is no such logger", given=option, remedy=nearest(option, OPTIONS))
    if option in ("none", "offline"):
        return option, ""
    variable = os.environ.get("WANDB_MODE", "").strip().lower()
    if variable == "disabled":
        return "none", "W&B: off (WANDB_MODE=disabled)."
    if variable in ("offline", "dryrun"):
        return "offline", f"W&B: offline (WANDB_MODE={variable}); upload with: {later()}"
    host = urlsplit(base_url()).netloc or base_url()
    if has_key():
        return "online", ""
    if option == "wandb":
        raise no_key("logger=wandb", otherwise="; or take logger=offline")
    return "offline", f"W&B: offline, no key for {host} (wandb login, or logger=none)."


def no_key(given: str, *, otherwise: str = "") -> UserError:
    """The complaint about a missing key."""
    return UserError(
        f"no W&B key found for {urlsplit(base_url()).netloc or base_url()}",
        given=given,
        remedy=f"Run `wandb login` or set WANDB_API_KEY{otherwise}.",
    )


def later() -> str:
    """The command that uploads what is still on this machine."""
    return f"{program()} wandb sync"


def home(directory: Path, sweep: str | None) -> Path:
    """The folder in which wandb makes its ``wandb`` folder: a sweep has one for all its points."""
    return directory.parent if sweep else directory


def sendable(value: Any) -> Any:
    """The value with strings for what JSON has no number for, as W&B spells them.

    wandb 0.31 sends a bare Infinity, which is no JSON, and one NaN makes a metric's min and max NaN; the
    strings are stored and drawn as the numbers that they name, and are left out of min and max.
    """
    if isinstance(value, Mapping):
        return {str(key): sendable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [sendable(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def has_key() -> bool:
    """Is there a key for the server? Looks where wandb looks; never reads it further than that."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        if os.environ.get(name, "").strip():
            return True
    try:
        entries = netrc.netrc(str(_netrc_path()))
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    host = urlsplit(base_url()).netloc
    hosts = _CLOUD_HOSTS if host in _CLOUD_HOSTS else (host,)
    # authenticators() itself falls back on a "default" entry, and so does wandb's look-up.
    found = [entries.authenticators(name) for name in hosts if name]
    return any(entry is not None and entry[2] for entry in found)


def base_url() -> str:
    """The server: ``WANDB_BASE_URL``, else what ``wandb login --host`` has stored, else the cloud.

    Raises:
        UserError: the variable holds no address.
    """
    given = os.environ.get("WANDB_BASE_URL", "").strip()
    if given and not given.lower().startswith(("http://", "https://")):
        raise UserError(
            "WANDB_BASE_URL is no address",
            given=given,
            remedy=f"Write http://{given} or https://...",
        )
    if given:
        return given.rstrip("/")
    folder = os.environ.get("WANDB_CONFIG_DIR") or Path("~/.config/wandb").expanduser()
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read(Path(folder) / "settings", encoding="utf-8")
        return settings.get("default", "base_url", fallback=CLOUD).rstrip("/")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return CLOUD


def new_id() -> str:
    """A random run id, to be stored in run.json before fit: a second try must not mix with a first."""
    return secrets.token_hex(6)


def start(
    mode: Mode,
    *,
    id: str,
    name: str,
    directory: Path,
    config: Mapping[str, Any],
    project: str = PROJECT,
    entity: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    job_type: str = "train",
    timeout_s: float = TIMEOUT_S,
    say: Callable[[str], None] | None = None,
) -> Run | None:
    """Start a W&B run; hand it to Lightning with ``WandbLogger(experiment=run)``.

    Args:
        mode: from ``mode()``; None comes back for "none".
        id: from ``new_id()``, the same again when a run is resumed.
        name: for people.
        directory: from ``home()``; wandb makes its ``wandb`` folder here.
        config: nested plain dict; W&B shows ``clip.threshold`` and the like.
        project: W&B project.
        entity: W&B team or user; None takes the key's own.
        group: name of the sweep.
        tags: W&B takes at most 64 characters each.
        job_type: train, eval or report.
        timeout_s: how long to wait for the server before going offline, and again at the end.
        say: takes the one line about a fall back; writes to stderr by default.

    Returns:
        The run, None where there is none; ``run.offline`` says how it ended up.
    """
    if mode == "none":
        return None
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
    import wandb

    say = say or _to_stderr
    directory.mkdir(parents=True, exist_ok=True)
    arguments: dict[str, Any] = {
        "id": id,
        "name": name[:128],
        "dir": str(directory),
        "config": sendable(config),
        "project": project,
        "entity": entity,
        "group": group,
        "tags": [tag[:64] for tag in tags if tag],
        "job_type": job_type,
        # Several runs of one process (a pool worker, vectorized points) must not fall into one.
        "reinit": "create_new",
        # Offline it is kept in the file, and lets an upload continue the steps of an earlier part.
        "resume": "allow",
    }
    if mode == "online" and base_url() not in _unreachable:
        before = set(directory.glob("wandb/run-*"))
        try:
            wandb.setup(settings=wandb.Settings(silent=True))  # else the log-in speaks
            settings = _settings(timeout_s, base_url=base_url())
            return _begun(wandb.init(mode="online", settings=settings, **arguments))
        except Exception as error:
            _unreachable.add(base_url())
            say(f"W&B: offline ({_reason(error)}); upload later with: {later()}")
            if not _active:
                wandb.teardown()  # else wandb still holds the id of the run that failed
                for stub in set(directory.glob(f"wandb/run-*-{id}*")) - before:
                    shutil.rmtree(stub, ignore_errors=True)
            else:
                arguments["id"] = new_id()
    try:
        return _begun(wandb.init(mode="offline", settings=_settings(timeout_s), **arguments))
    except Exception as error:
        say(f"W&B: off ({_reason(error)})")
        return None


def describe(run: Run | None, mode: Mode) -> dict[str, Any]:
    """The ``wandb`` block of run.json: {id, url, mode}, the mode being the one it ended up with."""
    if run is None:
        return {"id": None, "url": None, "mode": "none" if mode == "none" else "failed"}
    if run.offline:  # asking it for a URL prints a warning
        return {"id": run.id, "url": None, "mode": "offline"}
    return {"id": run.id, "url": run.url, "mode": "online"}


def summarise(run: Run | None, record: Mapping[str, Any]) -> None:
    """Put final scores into the run's summary; a failure is said in one line and is no more than that.

    wandb itself takes min and max since the process began; the record knows those of all its parts.

    Args:
        run: from ``start()``.
        record: run.json's content.
    """
    if run is None:
        return
    values = {**record["test"], **record["test_last"], **record["train_eval"]}
    for name, entry in record["metrics"].items():
        if name.startswith("val/"):
            values[name] = {how: entry[how] for how in _SUMMARY}
    try:
        run.summary.update(sendable(values))
    except Exception as error:
        _to_stderr(f"W&B: the scores could not be added ({_reason(error)})")


def finish(run: Run | None, exit_code: int = 0) -> None:
    """End a W&B run; safe for None, a second time and a server that is gone.

    Every started run must come here, or the next one of the process logs into it.
    """
    if run is None:
        return
    online = not run.offline and run.id in _active
    try:
        run.finish(exit_code=exit_code)
        if online:
            Path(f"{run.settings.sync_file}{UPLOADED}").touch()
    except TimeoutError:
        _to_stderr(f"W&B: the server did not take everything; upload the rest with: {later()}")
    except Exception as error:
        _to_stderr(f"W&B: could not finish the run ({_reason(error)})")
    finally:
        _active.discard(run.id)


def _settings(timeout_s: float, **more: Any) -> Any:
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        x_disable_stats=True,
        disable_git=True,
        save_code=False,
        init_timeout=timeout_s,
        finish_timeout=timeout_s,
        finish_timeout_raises=True,
        **more,
    )


def _begun(run: Run) -> Run:
    """Set the step axis, and keep min, max and last of scores: W&B cannot find a run's best afterwards."""
    run.define_metric(STEP, hidden=True)
    for prefix in _PREFIXES:
        run.define_metric(f"{prefix}/*", step_metric=STEP, step_sync=True)
    run.define_metric("val/*", step_metric=STEP, step_sync=True, summary=",".join(_SUMMARY))
    _active.add(run.id)
    return run


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _netrc_path() -> Path:
    given = os.environ.get("NETRC")
    if given:
        return Path(given).expanduser()
    home = Path("~/.netrc").expanduser()
    other = Path("~/_netrc").expanduser()
    return other if other.exists() and not home.exists() else home


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
