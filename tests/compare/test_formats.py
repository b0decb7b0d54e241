"""Every format says the same, fits where it goes, and lets no text do harm there."""

import csv
import io
import json
import re
from pathlib import Path

import pytest

from mmrun.compare import formats
from mmrun.compare.formats import FORMATS, Column
from mmrun.compare.table import compare, text
from mmrun.runs.record import STATUSES
from tests.compare.fakes import fake

OUT = Path("outputs")
EVIL = "\x1b]0;owned\x07|a\\b_c$d&{e}%#~^<i>`*[x](y)\n,\"'é"


def grid():
    for clip in ("none", "0.5", "value_0.1"):
        for seed in (0, 1, 2):
            fake(
                OUT / f"{clip}{seed}",
                "optimizer=momentum",
                f"clip={clip}",
                f"optimizer.lr={len(clip) / 10}",
                f"seed={seed}",
                val=0.9 - 0.01 * seed,
                status="diverged" if clip == "none" and seed else "finished",
            )
    fake(OUT / "q", "optimizer=momentum", "optimizer.lr=0.3", "clip=0.5", "seed=3", status="queued")


def made(**keywords):
    return compare([], outputs=OUT, **keywords)


def letters(said: str) -> list[str]:
    return sorted(re.sub(r"\s", "", said))


@pytest.mark.parametrize("width", [140, 100, 80, 60, 40])
def test_a_terminal_of_any_width(width):
    grid()
    comparison = made()
    whole, folded = text(comparison), text(comparison, width=width)
    head, _, below = folded.partition("\n\n")
    lines = head.splitlines()
    if width >= 80:
        assert max(map(len, lines)) <= width
    # No number is broken, and no word is lost.
    numbers = re.compile(r"\d\.\d{3} ± \d\.\d{3}")
    assert numbers.findall(head) == numbers.findall(whole)
    assert letters(head) == letters(whole.partition("\n\n")[0])
    notes = below.splitlines()[:-1]
    assert max(map(len, notes)) <= width
    assert below.splitlines()[-1] == whole.splitlines()[-1]  # the command is never wrapped


def test_columns_are_aligned_and_numbers_right():
    said = formats.plain(
        [Column("key", ["a", "long one"]), Column("n", ["1", "10"], right=True)], ["note"]
    )
    assert said.splitlines() == ["key        n", "a          1", "long one  10", "", "note"]


def test_cells_are_folded_at_commas_and_titles_at_dots():
    columns = [
        Column("optimizer.weight_decay", ["0.01"]),
        Column("stability", ["2 diverged, 1 ok"]),
        Column("val/accuracy", ["0.900 ± 0.010"], right=True),
    ]
    assert formats.plain(columns, [], width=45).splitlines() == [
        "optimizer       stability        val/accuracy",
        ".weight_decay",
        "0.01            2 diverged,     0.900 ± 0.010",
        "                1 ok",
    ]


def test_color_only_where_it_is_wanted():
    grid()
    assert "\x1b" not in text(made())
    colored = text(made(), color=True)
    assert "\x1b[31m2 diverged, 1 ok" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == text(made())


def test_markdown():
    grid()
    lines = text(made(), format="md").splitlines()
    rows = [re.split(r"(?<!\\)\|", line) for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(rows[0])}
    assert lines[1].startswith("| --- | --- | ---: |")
    assert any("value_0.1" in line for line in lines)  # an underscore inside a word needs no escape
    assert any(line.startswith("- mean ± sample sd over seeds") for line in lines)


def test_latex():
    grid()
    said = text(made(), format="latex")
    assert r"\begin{tabular}{llrllrrr}" in said
    assert r"value\_0.1 & 3 & finished & ok & 0.890 $\pm$ 0.010 &" in said
    body = said[said.index(r"\toprule") : said.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.count(" & ") for line in rows} == {7}


def test_a_row_that_begins_with_a_bracket_or_a_star_is_text():
    """A rule and the end of a row take what follows in brackets, or a star, for an argument."""
    columns = [Column("[key]", ["[image,text]", "*", " [x]", "a[0]"]), Column("n", ["[1]"] * 4)]
    rows = [line for line in formats.latex(columns, []).splitlines() if line.endswith(r"\\")]
    assert [row.partition(" & ")[0] for row in rows] == [
        "{[}key]", "{[}image,text]", "{*}", " {[}x]", "a[0]",
    ]  # fmt: skip


def test_a_long_value_is_cut_in_a_table_and_whole_elsewhere():
    long = "a" * 5000 + "b" * 5000
    for name in ("x", "y"):
        fake(OUT / name, f"clip={1 if name == 'x' else 2}", choices={"clip": long + name})
    for width in (None, 80):
        said = text(made(), width=width)
        assert max(map(len, said.splitlines())) < 250
        assert "aaaa...bbbb" in said.replace("\n", "") or width
    assert "aaa...bbb" in text(made())
    assert "bbbx" in text(made())  # what tells two of them apart is often at the end
    for form in ("md", "csv", "json", "latex"):
        assert text(made(), format=form).count(long) == 2
    counts = Column("status", [", ".join(f"10 {name}" for name in STATUSES)])
    assert counts.cells[0] in formats.plain([counts], [])


def test_csv_and_json_hold_the_numbers_in_full():
    grid()
    comparison = made()
    rows = list(csv.DictReader(io.StringIO(text(comparison, format="csv"))))
    content = json.loads(text(comparison, format="json"))
    assert len(rows) == len(content["groups"]) == len(comparison.groups)
    for row, given, group in zip(rows, content["groups"], comparison.groups, strict=True):
        score = group.scores["test/accuracy"]
        assert float(row["test/accuracy mean"]) == score.mean
        assert float(row["test/accuracy sd"]) == score.sd
        assert int(row["test/accuracy n"]) == score.n == 3
        assert given["scores"]["test/accuracy"] == {"mean": score.mean, "sd": score.sd, "n": 3}
        assert row["clip"] == given["settings"]["clip"] == group.settings["clip"]
        assert float(row["optimizer.lr"]) == given["settings"]["optimizer.lr"]
        assert {name: int(row[name]) for name in STATUSES if int(row[name])} == given["status"]
        assert len(given["runs"]) == sum(given["status"].values())
    assert content["order"] == "val/accuracy"
    assert {row["queued"] for row in rows} == {"0", "1"}


def dirty(name: str, **keys):
    """A run whose every string in sight is hostile."""
    fake(OUT / name, **keys)
    path = OUT / name / "run.json"
    record = json.loads(path.read_text())
    record["choices"] |= {"fusion": EVIL, "clip": "=1+2"}
    record["config"]["fusion"] = {"_target_": EVIL, EVIL: EVIL}
    record["monitor"]["metric"] = EVIL
    record |= {"id": name, "stability": EVIL, "name": EVIL, "overrides": [f"fusion.{EVIL}=1"]}
    for split in ("test", "test_last"):
        record[split] = {f"{split}/{EVIL}": 0.5}
    record["metrics"] = {f"val/{EVIL}": {"max": 0.5}}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("form", FORMATS)
def test_no_text_of_a_record_does_harm(form):
    dirty("a")
    fake(OUT / "b", "clip=1")
    (OUT / "bad\x1b[2J").mkdir()
    (OUT / "bad\x1b[2J" / "run.json").write_text("{")
    said = text(made(asked=f"test/{EVIL}"), format=form, width=80)
    assert all(each.isprintable() for line in said.split("\n") for each in line)
    if form == "md":
        rows = [re.split(r"(?<!\\)\|", line) for line in said.splitlines() if line[:1] == "|"]
        assert len({len(row) for row in rows}) == 1
        assert not re.search(r"(?<!\\)[<`*]", said)
    if form == "latex":
        body = said[said.index(r"\toprule") :].replace(r"\\" + "\n", "\n")
        assert not re.search(
            r"(?<!\\)[$&%#_](?!\w*\\?pm\$)(?<! &)(?! )", body.replace(r"$\pm$", "")
        )
        assert all(line.startswith("%") for line in said.split(r"\begin")[0].splitlines())
    if form == "csv":
        rows = list(csv.reader(io.StringIO(said)))
        assert len({len(row) for row in rows}) == 1
        assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@")]
    if form == "json":
        json.loads(said, parse_constant=pytest.fail)
