"""A sweep without trainings, for what is shown of it: ``python a_sweep.py SCENE``. Its points are folders with a run.json."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

from mmrun import exits
from mmrun.launch.plan import Planned
from mmrun.launch.running import Running
from mmrun.launch.view import View, open_view
from mmrun.runs.heartbeat import process_start
from mmrun.runs.record import blank, to_text
from mmrun.signals import interruptible, unhung
from mmrun.spec import Point

HARD = "note=[red]größe[/red]日本,encoder_text=[bold]" + "x" * 53 + ",fusion=[a],seed="


def planned(name: str, **record: Any) -> Planned:
    """A point with its folder."""
    directory = Path(f"p{len(list(Path().glob('p*')))}")
    directory.mkdir()
    (directory / "run.json").write_text(to_text(blank() | {"name": name} | record))
    config = {"trainer": {"max_epochs": 20, "max_steps": -1}}
    return Planned(
        point=Point(config=config, choices={}, name=name), directory=directory, action="train"
    )


def running(name: str, epochs: int | None = None, **record: Any) -> Running:
    """A point that this process trains, as its record says, read as the loop does."""
    metrics = {"val/loss": {"last": 0.5}, "val/accuracy": {"last": 0.9}}
    pid = __import__("os").getpid()
    keys: dict[str, Any] = {
        "status": "running",
        "host": socket.gethostname(),
        "pid": pid,
        "pid_start": process_start(pid),
        "epochs": epochs,
        "steps": epochs and 17 * epochs,
        "metrics": metrics if epochs else {},
    }
    found = Running(planned(name, **keys | record), None, begun=True)
    found.look()
    return found


def ended(value: float, status: str = "finished", **record: Any) -> dict[str, Any]:
    """How a point ended, with the value of its monitor."""
    return {
        **blank(),
        "status": status,
        "metrics": {"val/accuracy": {"last": 0.875}},
        "monitor": {"metric": "val/loss", "mode": "min", "value": value},
        **record,
    }


def show(view: View, points: list[Running], seconds: float = 0.0) -> None:
    """As the loop calls it, for some time."""
    end = time.monotonic() + seconds
    while True:
        view.tick(points)
        if time.monotonic() > end:
            return
        time.sleep(0.05)


def two(view: View) -> list[Running]:
    """Two running points, one after its 3rd epoch; one has ended, one was tried again."""
    points = [running("clip=none,seed=0", 3), running("clip=0.5,seed=1")]
    view.tick(points)
    view.ended(planned("clip=0.5,seed=0"), ended(0.25, name="clip=0.5,seed=0"), 12.0)
    view.retried(planned("clip=2,seed=0"), ended(9.0, "failed", error="ValueError: no\nmore"), 2, 3)
    show(view, points, 0.5)
    return points


def main(scene: str) -> int:
    """A scene; every one says at its end that it came to it."""
    total, many = 8, [running(f"{HARD}{k}", 10 + k) for k in range(64)] if scene == "many" else []
    with interruptible(), unhung(), open_view(total, exits.say, alone=True) as view:
        if scene == "many":
            view.ended(planned(f"{HARD}64"), ended(0.25, name=f"{HARD}64"), 12.0)
            show(view, many, 600)
        points = two(view)
        if scene == "prints":
            sys.stdout.write("a word of somebody else's\n")
            sys.stderr.write("and a warning\n")
        if scene == "raises":
            raise RuntimeError("in the midst of it")
        if scene == "waits":
            show(view, points, 600)
        if scene == "unseen":  # until the test says that nobody looks any more
            while not Path("gone").exists():
                show(view, points, 0.1)
            show(view, [*points, running("another", 1)], 0.5)
            exits.say("unheard")
            show(view, points, 0.5)
            view.ended(planned("clip=1,seed=0"), ended(0.5), 12.0)
        show(view, points[:1], 0.5)
    Path("end").touch()
    exits.say("the end")
    return 0


if __name__ == "__main__":
    sys.exit(exits.guarded(lambda: main(sys.argv[1])))
