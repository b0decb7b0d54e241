"""Upload what W&B has only on this machine: which runs are those, and did each get there?

Offline runs, and online ones that the server did not take whole. wandb's own command does the upload,
in a child process, and leaves a marker beside each file that is done: a second call finds nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmrun import runs, tracking
from mmrun.errors import UserError, printable
from mmrun.exits import FAILED
from mmrun.runs.finder import LAST
from mmrun.runs.layout import RECORD

_ADDRESS = re.compile(r"\bat (\S+/runs/(\S+))")
_LABEL = re.compile(r"\[[^\]\s]*/([^\]\s]+)\] ?(.*)")
_HEADER_BYTES = 7  # a process that is killed at once leaves no more
_BATCH = 500  # runs per command: its words have room for some thousand files
_LEFT_ALONE = {
    "running": "upload it when it has ended",  # its file would be marked as uploaded before its end
    "empty": "killed before W&B wrote anything",
}
# wandb's own patience is hours; a server that is gone shall be said so within a minute.
_PATIENCE = {
    "WANDB_X_GRAPHQL_RETRY_MAX": "3",
    "WANDB_X_GRAPHQL_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_GRAPHQL_TIMEOUT_SECONDS": "10",
    "WANDB_X_FILE_STREAM_RETRY_MAX": "3",
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "3",
    "WANDB_X_FILE_STREAM_TIMEOUT_SECONDS": "30",
    "WANDB_X_FILE_TRANSFER_RETRY_MAX": "3",
    "WANDB_X_FILE_TRANSFER_RETRY_WAIT_MAX_SECONDS": "3",
}
# What a training is told by them is not meant for an upload, and its lines must be heard.
_UNHEARD = (
    "WANDB_MODE",
    "WANDB_SILENT",
    "WANDB_QUIET",
    "WANDB_DIR",
    "WANDB_RUN_ID",
    "WANDB_PROJECT",
)


@dataclass
class LocalRun:
    """One W&B run on this machine, in as many parts as it was begun and resumed.

    Args:
        id: W&B's.
        files: ``<home>/wandb/[offline-]run-<date>_<time>-<id>/run-<id>.wandb``, oldest first.
        directory: its run directory; None where W&B's files belong to none.
        status: of that run; empty without one.
    """

    id: str
    files: list[Path]
    directory: Path | None
    status: str

    @property
    def name(self) -> str:
        """The run directory, or W&B's folder, as one would type it here."""
        path = self.directory or self.files[0].parent
        here = Path.cwd()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)

    @property
    def waiting(self) -> list[Path]:
        """The files that are not uploaded yet, and have something in them."""
        left = [each for each in self.files if not _marker(each).exists()]
        return [each for each in left if each.stat().st_size > _HEADER_BYTES]

    @property
    def state(self) -> Literal["there", "running", "waiting", "empty"]:
        """Is it at W&B, still written to, to be uploaded, or without anything to upload?"""
        marked = [_marker(each).exists() for each in self.files]
        if all(marked):
            return "there"
        if self.status == "running":
            return "running"
        if self.waiting:
            return "waiting"
        return "there" if any(marked) else "empty"

    def named_in(self, complaint: str) -> list[Path]:
        """The files of which wandb complains."""
        names = [(each, re.escape(each.parent.name)) for each in self.files]
        return [each for each, name in names if re.search(rf"/{name}(?![\w-])", complaint)]


def sync(
    words: Sequence[str], outputs: Path, say: Callable[[str], None], *, dry_run: bool = False
) -> int:
    """Upload what waits, and say of each run what happened; 1 where one failed, else 0.

    Args:
        words: runs, sweeps and folders; none means everything below outputs.
        outputs: the root of all runs.
        say: takes a line at a time, as it happens.
        dry_run: say what would be uploaded, and stop.

    Raises:
        UserError: a word names nothing, or there is no key for the server.
    """
    local = find(words, outputs)
    states = [each.state for each in local]
    due = [each for each, state in zip(local, states, strict=True) if state == "waiting"]
    for each, state in zip(local, states, strict=True):
        if state in _LEFT_ALONE:
            say(f"{state:9} {each.name}  ({_LEFT_ALONE[state]})")
    there = f"{states.count('there')} already there"
    if not due:
        say(f"nothing to upload; {there}")
        return 0
    if dry_run:
        for each in due:
            say(f"waiting   {each.name}")
        say(f"{len(due)} to upload; {there}")
        return 0
    if not tracking.has_key():
        raise tracking.no_key("")
    say(f"uploading {len(due)} to {tracking.base_url()}")
    failed = 0
    batches = [due[k : k + _BATCH] for k in range(0, len(due), _BATCH)]
    outcomes = itertools.chain.from_iterable(map(_upload, batches))
    for number, (each, address, reason) in enumerate(outcomes, 1):
        failed += bool(reason)
        count = f"{number}/{len(due)}"
        say(f"{'failed' if reason else 'uploaded':9} {count}  {each.name}  {reason or address}")
    say(f"{len(due) - failed} uploaded, {failed} failed; {there}")
    return FAILED if failed else 0


def find(words: Sequence[str], outputs: Path) -> list[LocalRun]:
    """The W&B runs that the user means: all below outputs, or those of runs, sweeps and folders named.

    Raises:
        UserError: a word names nothing.
    """
    if not words and not outputs.is_dir():
        raise UserError("there are no runs yet", given=outputs, remedy="Make one: mmrun train")
    places = [_place(word, outputs) for word in words] or [(outputs, None)]
    found: dict[Path, LocalRun] = {}
    for folder, id in places:
        for each in _below(folder):
            if id in (None, each.id):
                found[each.files[0]] = each
    return list(found.values())


def _place(word: str, outputs: Path) -> tuple[Path, str | None]:
    """(folder to search, W&B id of the one run that is meant; None for all that is there)."""
    if word != LAST:
        for folder in (Path(word).expanduser(), outputs / word):
            if folder.is_dir() and not (folder / RECORD).is_file():
                return folder, None
    try:
        directory = runs.find(word, outputs)
    except UserError as error:
        try:
            return runs.find_sweep(word, outputs), None
        except UserError:
            raise error from None
    record = runs.read(directory)
    return tracking.home(directory, record["sweep"]), str(record["wandb"].get("id"))


def _below(folder: Path) -> list[LocalRun]:
    """The W&B runs at or below a folder, by the time at which they began."""
    found: dict[tuple[Path, str], LocalRun] = {}
    owners: dict[Path, dict[str, tuple[Path, str]]] = {}
    files = [
        each for each in folder.absolute().rglob("run-*.wandb") if each.parents[1].name == "wandb"
    ]
    for file in sorted(files, key=lambda each: each.parent.name.removeprefix("offline-")):
        home, id = file.parents[2], file.stem.removeprefix("run-")
        if home not in owners:
            records = runs.read_all([home])
            owners[home] = {str(r["wandb"].get("id")): (d, r["status"]) for d, r in records.items()}
        directory, status = owners[home].get(id, (None, ""))
        each = found.setdefault((home, id), LocalRun(id, [], directory, status))
        each.files.append(file)
    return list(found.values())


def _upload(due: Sequence[LocalRun]) -> Iterator[tuple[LocalRun, str, str]]:
    """(run, its address, why it failed or ""), as soon as that is known."""
    pending = list(due)
    while pending:
        addresses: dict[str, str] = {}
        reasons: dict[str, str] = {}
        before = {each.files[0]: len(each.waiting) for each in pending}
        for id, line in _wandb_says([file for each in pending for file in each.waiting]):
            if found := _ADDRESS.search(line):
                addresses[found[2]] = found[1]
            elif "incomplete record" in line:  # killed in mid-write; all that is whole was sent
                for each in pending:
                    for file in each.named_in(line):
                        _marker(file).touch()
            elif line.startswith("ERROR") and "error logs at" not in line:
                reasons.setdefault(id, _plain(line.removeprefix("ERROR").strip()))
            for done in [each for each in pending if not each.waiting]:
                pending.remove(done)
                address = addresses.get(done.id, "")
                _record(done, address)
                yield done, address, ""
        # A file that cannot be read keeps wandb from beginning with the others.
        failed = pending
        if any(len(each.waiting) < before[each.files[0]] for each in pending):
            failed = []  # a part of it went: wandb left the next part for another call
        elif len(pending) == len(before):
            failed = [each for each in pending if each.named_in(reasons.get("", ""))] or pending
        for each in failed:
            yield each, "", reasons.get(each.id) or reasons.get("") or "wandb gave no reason"
        pending = [each for each in pending if each not in failed]


def _plain(reason: str) -> str:
    """What wandb says of one run where it holds for all of them."""
    if re.search(r"\b40[13]\b", reason):
        return "the server refused the key"
    return reason


def _marker(file: Path) -> Path:
    return file.with_name(file.name + tracking.UPLOADED)


def _wandb_says(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(W&B id or "", line) for each line of ``wandb sync``, and one empty line at its end."""
    environment = {key: value for key, value in os.environ.items() if key not in _UNHEARD}
    environment = _PATIENCE | environment | {"WANDB_ERROR_REPORTING": "false", "NO_COLOR": "1"}
    with tempfile.TemporaryDirectory() as elsewhere:  # wandb leaves a log where it is started
        command = [sys.executable, "-m", "wandb", "sync", "--yes", "--include-online"]
        with subprocess.Popen(
            [*command, *map(str, files)],
            cwd=elsewhere,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as child:
            try:
                assert child.stdout is not None
                for raw in child.stdout:
                    yield _parsed(printable(raw.strip()).removeprefix("wandb: "))
            except BaseException:
                child.terminate()
                raise
    yield "", ""


def _parsed(line: str) -> tuple[str, str]:
    """(W&B id or "", what is said of it), a complaint as ``ERROR ...``."""
    complaint = line.startswith(("ERROR ", "Error: "))
    text = line.partition(" ")[2] if complaint else line
    labelled = _LABEL.fullmatch(text)
    id, text = (labelled[1], labelled[2]) if labelled else ("", text)
    return id, f"ERROR {text}" if complaint else text


def _record(uploaded: LocalRun, address: str) -> None:
    """run.json says where the run is to be seen."""
    if uploaded.directory is None or not address:
        return
    with contextlib.suppress(OSError, UserError):  # somebody else's, or moved away meanwhile
        run = runs.Run.open(uploaded.directory)
        run.update(wandb={**run.record["wandb"], "url": address, "mode": "online"})
