"""300 mutated command lines: none may raise, show a traceback, or leave a file where it exits with 2."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import mmrun.launch.loop
import mmrun.train
from mmrun import cli
from mmrun.errors import UserError

LINES = 300
SEED = 20
# Small, so that a line that survives its mutation is built in a moment.
BASE = ("dataset=synthetic", "dataset.samples=60", "trainer=smoke", "logger=none")
POOL = (
    ("fusion=attention", "clip=0.5"),
    ("clip=value_0.1", "optimizer=momentum", "optimizer.lr=0.1"),
    ("clip=norm", "clip.per=modality", "clip.budget=each", "clip.threshold=2"),
    ("encoder/a=mlp", "encoder.b.dim=8", "dataset.use=[a,b]"),
    ("dataset.modalities.a.signal=0.5", "dataset.classes=3"),
    ("schedule=cosine", "optimizer.betas=[0.9,0.99]", "optimizer.scopes.a.lr=0.01"),
    ("trainer.max_epochs=5", "trainer.max_time='00:00:10:00'", "trainer.target.accuracy=0.9"),
    ("missing.test_rate=0.3", "model.feature_clip=2.0", "model.gradient_clip=.inf"),
    ("objective.hidden=[8,4]", "objective.label_smoothing=0.1", "seed=3", "data_seed=4"),
    ("outputs=runs", "name=mine", "threads=1", "trainer.precision=64-true"),
    ("fusion={heads: 2}", "fusion=attention", "dataset.batch_size=all"),
    ("--cfg", "job", "clip=0.5", "optimizer.lr=0.1"),
    (
        "balance=none",
        "optimizer.weight_decay=1e-4",
        "dataset.label_noise=0.1",
        "dataset.imbalance=2",
    ),
)
VALUES = (
    *("", "null", "true", "abc", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e400", "9" * 40),
    *(
        "[]",
        "[1,[2,[3]]]",
        "{}",
        "{a:{b:{c:1}}}",
        "{a: 1, b: [2, {c: null}]}",
        "[",
        "}",
        "'",
        '"x"',
    ),
    *(
        "1,2",
        "range(3)",
        "choice(1,2)",
        "interval(0,1)",
        "glob(*)",
        "sort(3,1)",
        "int(x)",
        "shuffle()",
    ),
    *(
        "${seed}",
        "${nope}",
        "${",
        "${oc.env:HOME}",
        "${optimizer.lr}",
        "???",
        "a/b",
        "../x",
        "~",
        "*",
    ),
    *(
        "é",
        "梯度",
        "\N{GRINNING FACE}",
        "a\x00b",
        "\x1b[31m",
        "a\nb",
        "\udcff",
        " ",
        "\\",
        "%s",
        "x" * 5000,
    ),
)
WORDS = (
    *(
        "clip.thresold=1",
        "fussion=concat",
        "nothing=1",
        "a.b.c.d=1",
        "+extra.key=1",
        "~clip",
        "~optimizer.lr",
    ),
    *(
        "++trainer.foo=1",
        "+trainer.foo=1",
        "encoder=mlp",
        "encoder.a=mlp",
        "encoder/z=mlp",
        "encoder/a/b=mlp",
    ),
    *("dataset._target_=os.system", "fusion._target_=builtins.eval", "clip._target_=mmrun.nope.X"),
    *(
        "hydra.run.dir=x",
        "hydra/launcher=ray",
        "seeds=3",
        "rerun=true",
        "-m",
        "--multirun",
        "--nope",
        "-x",
    ),
    *(
        "=",
        "==",
        "=1",
        "",
        "-",
        "--",
        "fusion",
        "a b",
        "/",
        "clip/norm=1",
        "@x=1",
        "fusion@x=concat",
        "a=b=c",
    ),
)


def mutated(rng: random.Random) -> list[str]:
    """A command line of the pool with one to three things wrong, or odd."""
    words = list(rng.choice(POOL))
    for _ in range(rng.choice((1, 1, 2, 3))):
        k = rng.randrange(len(words)) if words else 0
        word = words[k] if words else ""
        key, equals, value = word.partition("=")
        at = rng.randrange(len(word) + 1)
        changes: list[Callable[[], list[str]]] = [
            lambda word=word, at=at: [word[: at - 1] + word[at:]],
            lambda word=word, at=at: [word[:at] + word[at : at + 1] * 2 + word[at + 1 :]],
            lambda word=word, at=at: [word[:at] + word[at : at + 2][::-1] + word[at + 2 :]],
            lambda word=word, at=at: [word[:at] + rng.choice("={}[],:$'\"~+/.@ \té") + word[at:]],
            lambda word=word: [word, word],
            lambda word=word: [word, rng.choice(WORDS)],
            lambda key=key, equals=equals: [key + (equals or "=") + rng.choice(VALUES)],
            lambda key=key, equals=equals: [key + (equals or "=") + rng.choice(VALUES)],
            lambda key=key, value=value: [key + rng.choice(("x", ".x", "/x", "")) + "=" + value],
            lambda value=value: [f"{rng.choice(rng.choice(POOL)).partition('=')[0]}={value}"],
            list,
        ]
        words[k : k + 1] = rng.choice(changes)()
    given = {word.partition("=")[0] for word in words}
    base = [word for word in BASE if word.partition("=")[0] not in given]
    return ["train", *base, *words]


def test_mutated_command_lines_are_answered_in_one_line_and_leave_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    """Everything up to the run directory is real; training is not: that a line is good is all it shows."""

    def create(*_: Any, **__: Any) -> NoReturn:
        raise UserError("created")

    monkeypatch.setattr(mmrun.train, "create", create)
    monkeypatch.setattr(mmrun.launch.loop, "drive", create)
    monkeypatch.setenv("HOME", str(tmp_path))
    rng = random.Random(SEED)
    codes: dict[int, int] = {}
    created = 0
    for _ in range(LINES):
        words = mutated(rng)
        code = cli.main(words)
        out, err = capsys.readouterr()
        codes[code] = codes.get(code, 0) + 1
        assert code in (0, 2), (words, err)
        assert "Traceback" not in out + err, words
        assert list(tmp_path.iterdir()) == [], words
        if code == 2:
            assert err.startswith("mmrun: "), (words, err)
            assert err.count("\n") == 1, (words, err)
            assert err.isprintable() or err[:-1].isprintable(), (words, err)
            assert len(err) < 2000, words
            created += "created" in err
    # The pool is good enough that lines get all the way through, and the mutations bad enough that most do not.
    assert created > LINES / 20
    assert codes[2] - created > LINES / 2
