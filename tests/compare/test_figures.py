"""What a figure shows, as data; and that it becomes a file, whole or not at all."""

import math
from pathlib import Path

import pytest

from mmrun.cli import main
from mmrun.compare.draw import draw
from mmrun.compare.figures import axis, figure
from mmrun.compare.table import compare
from mmrun.errors import UserError
from tests.compare.fakes import fake

OUT = Path("outputs")


def made(*by, **keywords):
    return figure(compare([], outputs=OUT, by=by or None, **keywords))


def grid():
    """Learning rates by thresholds, two seeds; one pair is missing, others went wrong."""
    for lr in (0.003, 0.03, 0.3):
        for clip in ("none", "0.1", "1", "10"):
            if (lr, clip) == (0.003, "10"):
                continue
            for seed in (0, 1):
                wrong = {
                    (0.3, "none"): {"status": "diverged", "last": 0.1},
                    (0.3, "10"): {"stability": "collapsed"} if seed else {},
                    (0.03, "10"): {"status": "failed"} if seed else {},
                    (0.03, "none"): {"status": "queued"},
                }.get((lr, clip), {})
                name = f"{lr}-{clip}-{seed}"
                fake(OUT / name, f"optimizer.lr={lr}", f"clip={clip}", f"seed={seed}", val=lr + seed / 10, **wrong)  # fmt: skip


def test_a_heat_map_over_two_keys():
    grid()
    shown = made("optimizer.lr", "clip")
    assert shown.x.labels == ("0.003", "0.03", "0.3")
    assert shown.y is not None
    assert shown.y.labels == ("0.1", "1", "10", "none")
    assert (0, 2) not in shown.cells
    assert len(shown.cells) == 11
    cell = shown.cells[1, 0]
    assert (cell.mean, cell.n) == (pytest.approx(0.08), 2)
    assert cell.sd == pytest.approx(0.1 / math.sqrt(2))
    assert shown.cells[2, 3].wrong == ("2 diverged",)
    assert shown.cells[2, 2].wrong == ("1 collapsed",)
    assert (shown.cells[1, 2].wrong, shown.cells[1, 2].n) == (("1 failed",), 1)
    assert (shown.cells[1, 3].mean, shown.cells[1, 3].waiting) == (None, ("2 queued",))
    assert cell.wrong == cell.waiting == ()
    assert shown.metric == "test/accuracy"
    assert shown.notes == ("mean ± sd over seeds",)


def test_points_over_one_key():
    grid()
    shown = made("clip", conditions=["optimizer.lr=0.3"])
    assert shown.y is None
    assert shown.x.log
    assert shown.x.numbers == 3
    assert shown.x.positions == pytest.approx((-1, 0, 1, 2))  # none stands apart at the end
    assert shown.cells[0, 0].values == pytest.approx((0.4, 0.3))
    pooled = made("clip", asked="test_last/accuracy")
    assert "pooled over optimizer.lr" in pooled.notes
    assert pooled.title == "test_last/accuracy (last step)"
    assert pooled.cells[3, 0].mean == pytest.approx((0.003 + 0.103 + 0.1 + 0.1) / 4)
    chosen = made("clip", select="val")
    assert "other settings chosen by val/accuracy" in chosen.notes
    assert [cell.n for _, cell in sorted(chosen.cells.items())] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("values", "labels", "positions", "log"),
    [
        ([0.1, 0.01, 1.0], "0.01 0.1 1", (-2, -1, 0), True),
        ([3, 1, 2], "1 2 3", (1, 2, 3), False),
        ([0.0, 10.0, 100.0], "0 10 100", (0, 10, 100), False),
        (["none", "1", "3"], "1 3 none", (1, 3, 5), False),
        (["none", "1"], "1 none", (0, 1), False),
        (["value_0.1", "1", "none", "2"], "1 2 value_0.1 none", (0, 1, 2, 3), False),
        (["sum", "concat"], "concat sum", (0, 1), False),
        ([float("inf"), 1.0, 2.0], "1 2 inf", (0, 1, 2), False),
        (["x"], "x", (0,), False),
    ],
)
def test_axes(values, labels, positions, log):
    found = axis("key", values)
    assert found.labels == tuple(labels.split())
    assert found.positions == pytest.approx(positions)
    assert found.log == log


def test_a_figure_wants_one_key_or_two():
    grid()
    assert made().y is not None  # what differs: two keys
    with pytest.raises(UserError, match="one key or two"):
        made("clip", "optimizer.lr", "fusion")
    with pytest.raises(UserError, match="one key or two"):
        figure(compare([], outputs=OUT, select="val"))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".SVG"])
def test_files(suffix):
    grid()
    for by in (["clip"], ["optimizer.lr", "clip"]):
        path = Path("figures") / f"f{suffix}"
        path.parent.mkdir(exist_ok=True)
        draw(made(*by), path)
        whole = path.read_bytes()
        assert whole.startswith({".png": b"\x89PNG", ".pdf": b"%PDF"}.get(suffix, b"<?xml"))
        draw(made(*by), path)
        assert path.read_bytes() == whole  # the same runs, the same file
        assert [each.name for each in path.parent.iterdir()] == [path.name]
        path.unlink()


def test_a_folder_that_is_not_there_is_not_made(capsys):
    grid()
    words = ["compare", "--by", "clip", "--figure", "no/such/f.png"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "mmrun: cannot write the figure: there is no such folder (given: no/such). Make it first.\n"
    )
    assert not Path("no").exists()


def test_what_is_written_in_the_picture():
    grid()
    draw(made("optimizer.lr", "clip"), Path("f.svg"))
    said = Path("f.svg").read_text()
    for word in ("optimizer.lr", "clip", "none", "2 diverged", "1 failed", "2 queued", "no run"):
        assert f">{word}<" in said, word


def test_scores_that_are_no_numbers_and_texts_that_are_no_words(tmp_path):
    fake(OUT / "a", "clip=1", val=float("nan"), status="diverged")
    fake(OUT / "b", "clip=2", val=float("inf"), status="diverged")
    draw(made("clip"), Path("a.png"))
    draw(made("clip", "fusion"), Path("b.png"))
    fake(OUT / "c", "clip=3", choices={"clip": "$\\frac{\x1b]0;x\x07" + "y" * 99})
    draw(made("clip"), Path("c.svg"))
    assert "\x07" not in Path("c.svg").read_text()
    with pytest.raises(UserError, match="cannot write"):
        draw(made("clip"), OUT / "a" / "run.json" / "f.png")
    with pytest.raises(UserError, match=r"\.png"):
        draw(made("clip"), tmp_path / "f.gif")
