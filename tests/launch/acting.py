"""Points that do, while they train, what a test wants to see survived: a user's fusion with a knob ``act``."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmrun import compose, user_code
from mmrun.launch.executor import Ended, Executor, Job
from mmrun.runs.writer import freeze
from tests.running import SMALL, record_of

MODULE = "acting_fusion"
TRUST = (MODULE,)
QUICK = (*SMALL, "trainer.max_epochs=1", "trainer.checkpoint=both")
DEADLINE_S = 240

CODE = """\
import json, os, signal, sys, time
from pathlib import Path
import torch
from mmrun.fusion import Fusion


class Acting(Fusion):
    def __init__(self, dims, *, act="nothing", note=""):
        super().__init__(dims)
        self.dim = max(dims.values())
        self.act, self.note = act, note
        self.steps = 0

    def forward(self, tokens):
        if self.training and torch.is_grad_enabled():
            self.steps += 1
            if self.steps == 1 and self.note:
                self.tell()
            if self.steps == 2:
                getattr(self, "do_" + self.act)()
        return torch.stack([tokens[m].pooled for m in self.modalities]).amax(0)

    def tell(self):
        about = {"pid": os.getpid(), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": torch.get_num_threads()}
        about |= {k: os.environ[k] for k in os.environ if k.endswith("_NUM_THREADS")}
        Path(self.note).write_text(json.dumps(about))

    def do_nothing(self):
        pass

    def do_print(self):
        print("printed by a point")
        os.write(2, b"written by a library\\n")
        print("read:", repr(sys.stdin.read()))

    def do_load(self):
        data = torch.utils.data.TensorDataset(torch.arange(8.0))
        loader = torch.utils.data.DataLoader(data, num_workers=2, batch_size=2)
        print("loaded", sum(float(batch.sum()) for (batch,) in loader))

    def do_raise(self):
        raise KeyError("no luck")

    def do_exit(self):
        print("last words")
        os._exit(9)

    def do_sys_exit(self):
        sys.exit(3)

    def do_kill(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def do_crash(self):
        import ctypes
        ctypes.string_at(0)

    def do_memory(self):
        raise MemoryError("no more")

    def do_cuda(self):
        try:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        except RuntimeError as error:
            raise ValueError("lost") from error

    def do_fill(self):
        import mmrun.runs.writer

        def full(path, text):
            raise OSError(28, "No space left on device")

        mmrun.runs.writer.write_whole = full

    def do_sleep(self):
        time.sleep(0.4)

    def do_hang(self):
        time.sleep(600)

    def do_hold(self):
        while True:
            try:
                time.sleep(600)
            except BaseException:
                pass

    def do_hang_loading(self):
        class Slow(torch.utils.data.Dataset):
            def __len__(self):
                return 1

            def __getitem__(self, k):
                Path("loader.pid").write_text(str(os.getpid()))
                time.sleep(600)

        list(torch.utils.data.DataLoader(Slow(), num_workers=1))
"""


def project(root: Path) -> Path:
    """A project's folder of configs with fusion=acting, and its module on the path of this process."""
    folder = root / "project" / "conf"
    if not folder.exists():
        (folder / "fusion").mkdir(parents=True)
        text = f"# Acts\n_target_: {MODULE}.Acting\nact: nothing\nnote: ''\n"
        (folder / "fusion" / "acting.yaml").write_text(text)
        (folder.parent / f"{MODULE}.py").write_text(CODE)
    user_code.add_to_path([str(folder)])
    return folder


def job(name: str, act: str = "nothing", *overrides: str) -> Job:
    """A frozen point whose second step acts; ``name`` is its folder, and ``name.json`` what it tells of itself."""
    folder = project(Path.cwd())
    note = Path.cwd() / f"{name}.json"
    words = [*QUICK, "fusion=acting", f"fusion.act={act}", f"fusion.note={note}", *overrides]
    directory = Path.cwd() / "points" / name
    freeze(compose.point(words, [str(folder)]), directory)
    return Job(directory=directory, trust=TRUST)


def finish(
    executor: Executor, jobs: Iterable[Job], *, deadline_s: float = DEADLINE_S
) -> dict[str, tuple[Ended, Mapping[str, Any]]]:
    """Have an executor do all jobs; {folder: (how the job ended, run.json as it stands)}."""
    waiting, active = iter(jobs), dict[Any, Job]()
    found: dict[str, tuple[Ended, Mapping[str, Any]]] = {}
    until = time.monotonic() + deadline_s
    while True:
        assert time.monotonic() < until, "the pool does not end"
        room = executor.room()
        batch = list(itertools.islice(waiting, room))
        active |= dict(zip(executor.submit(batch), batch, strict=True))
        if room and not active:
            return found
        executor.wait(0.5)
        for handle in list(active):
            ended = executor.poll(handle)
            if ended is not None:
                directory = active.pop(handle).directory
                found[directory.name] = ended, record_of(directory)


def main(words: list[str]) -> None:
    """``acting.py NAME ACT POINTS [KNOB=VALUE]``: a pool of its own, in the working directory, for tests that kill it.

    0 points are points without an end.
    """
    from mmrun.launch.local import Local

    name, act, points, *knobs = words
    given = {key: json.loads(value) for key, _, value in (k.partition("=") for k in knobs)}
    numbers = range(int(points)) if int(points) else itertools.count()
    project(Path.cwd())
    pool = Local(**given)
    pool.prepare(int(points) or 10)
    try:
        finish(pool, (job(f"{name}{k}", act, f"seed={k}") for k in numbers), deadline_s=600)
    finally:
        pool.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
