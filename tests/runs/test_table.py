"""CSV tables: numbers come back, rows survive a kill, later rows can be cut."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrun.runs import CsvTable, metrics_columns, read_columns, read_series, truncate
from tests.running import cpu_seconds


def test_numbers_and_gaps(tmp_path):
    path = tmp_path / "metrics.csv"
    with CsvTable(path, ["step", "epoch", "time", "a", "b"]) as table:
        table.append({"step": 0, "epoch": 0, "time": 1795257488.9222, "a": 0.1, "b": math.nan})
        table.append({"step": np.int64(123456789), "b": -math.inf})
        table.append({"step": 2, "a": np.float32(1 / 3), "b": True})
        table.append({"step": 3, "a": None})
    assert path.read_text() == (
        "step,epoch,time,a,b\n"
        "0,0,1795257488.922,0.1,nan\n"
        "123456789,,,,-inf\n"
        "2,,,0.333333343,1\n"
        "3,,,,\n"
    )
    columns = read_columns(path)
    assert columns["step"].tolist() == [0, 123456789, 2, 3]
    assert np.isnan(columns["b"]).tolist() == [True, False, False, True]
    steps, values = read_series(path, "b")  # the NaN was logged, the last cell was not
    assert steps.tolist() == [0, 123456789, 2]
    assert math.isnan(values[0])
    assert values[1:].tolist() == [-math.inf, 1]
    assert read_series(path, "nothing")[0].size == 0


@given(
    rows=st.lists(
        st.tuples(st.floats(width=32) | st.none(), st.floats(width=32) | st.none()), max_size=20
    )
)
@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_float32_round_trips(tmp_path, rows):
    path = tmp_path / "t.csv"
    path.unlink(missing_ok=True)
    with CsvTable(path, ["step", "a", "b"]) as table:
        for i, (a, b) in enumerate(rows):
            table.append({"step": i, "a": a, "b": b})
    for at, name in enumerate("ab"):
        steps, values = read_series(path, name)
        logged = [(i, row[at]) for i, row in enumerate(rows) if row[at] is not None]
        assert steps.tolist() == [i for i, _ in logged]
        expected = np.array([value for _, value in logged], dtype=np.float32)
        np.testing.assert_array_equal(values.astype(np.float32), expected)


def test_extend_writes_what_append_writes(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"step": np.arange(50), "x": rng.standard_normal(50).astype(np.float32)}
    columns["x"][[3, 7]] = [np.nan, np.inf]
    with CsvTable(tmp_path / "a.csv", ["step", "x", "gap"]) as table:
        table.extend(columns)
    with CsvTable(tmp_path / "b.csv", ["step", "x", "gap"]) as table:
        for i in range(50):
            table.append({"step": columns["step"][i], "x": columns["x"][i]})
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_columns_are_fixed(tmp_path):
    path = tmp_path / "t.csv"
    with CsvTable(path, ["step", "loss"]) as table:
        with pytest.raises(KeyError, match="Did you mean loss"):
            table.append({"step": 1, "los": 2})
        with pytest.raises(ValueError, match="different lengths"):
            table.extend({"step": [1, 2], "loss": [1.0]})
        table.extend({})
    with pytest.raises(ValueError, match="other columns"):
        CsvTable(path, ["step", "other"])
    for bad in ([], ["step", "step"], ["step", "a,b"], ["step", ""]):
        with pytest.raises(ValueError, match="column"):
            CsvTable(tmp_path / "u.csv", bad)
    assert metrics_columns(["b", "a", "step"]) == ["step", "epoch", "time", "a", "b"]


def test_flush_makes_rows_visible_and_reopening_appends(tmp_path):
    path = tmp_path / "t.csv"
    table = CsvTable(path, ["step", "x"])
    table.append({"step": 0, "x": 1})
    assert read_columns(path)["step"].size == 0
    table.flush()
    assert read_columns(path)["step"].tolist() == [0]
    table.close()
    table.close()
    path.write_text(path.read_text() + "1,2\n2,3")  # killed in the middle of a row
    assert read_columns(path)["step"].tolist() == [0, 1]
    with CsvTable(path, ["step", "x"]) as again:
        again.append({"step": 2, "x": 4})
    assert path.read_text() == "step,x\n0,1\n1,2\n2,4\n"


@pytest.mark.parametrize("cut", range(31))
def test_any_torn_file_can_be_read_cut_and_continued(tmp_path, cut):
    path, whole = tmp_path / "t.csv", "step,x\n0,1.5\n10,2.5\n20,3.5\n"
    path.write_text(whole[:cut])
    n_rows = max(0, whole[:cut].count("\n") - 1)
    columns = read_columns(path)
    assert columns.get("x", np.empty(0)).tolist() == [1.5, 2.5, 3.5][:n_rows]
    truncate(path, 10)
    with CsvTable(path, ["step", "x"]) as table:
        table.append({"step": 99})
    kept = min(n_rows, 2)
    assert path.read_text() == "step,x\n" + "".join(["0,1.5\n", "10,2.5\n"][:kept]) + "99,\n"


def test_truncate(tmp_path):
    path = tmp_path / "t.csv"
    assert truncate(path, 5) == 0
    path.write_text("step,x\n1,1\n5,1\n6,1\n7,1\n5,2\nrubbish\n8,")
    assert truncate(path, 5) == 4
    assert path.read_text() == "step,x\n1,1\n5,1\n5,2\n"
    before = path.stat().st_ino
    assert truncate(path, 5) == 0
    assert path.stat().st_ino == before
    assert truncate(path, -1) == 3
    assert path.read_text() == "step,x\n"


def test_rows_that_do_not_fit_are_left_out(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("step,x\r\n1,2\r\n2\r\n3,x\r\n\r\n4,5,6\r\n7,\r\n8,9\r\n")
    assert read_columns(path)["step"].tolist() == [1, 7, 8]
    path.write_bytes(b"step,x\n1,2\n2,\xff\n3,4\n")
    assert read_columns(path)["x"].tolist() == [2, 4]
    path.write_text("")
    assert read_columns(path) == {}
    assert read_columns(tmp_path / "gone") == {}
    assert read_columns(tmp_path) == {}


def test_the_time_to_read_grows_with_the_rows(tmp_path):
    names = ["step", *(f"c{i}" for i in range(19))]
    block = np.random.default_rng(0).standard_normal((1000, 20)).astype(np.float32)
    lines = [",".join(f"{value:.9g}" for value in row[:-1]) + "," for row in block]
    body = "\n".join(lines) + "\n"
    few, many = tmp_path / "few.csv", tmp_path / "many.csv"
    few.write_text(",".join(names) + "\n" + body * 10)
    many.write_text(",".join(names) + "\n" + body * 100)
    columns = read_columns(many)
    assert columns["c0"].shape == (100_000,)
    assert np.isnan(columns["c18"]).all()
    ratio = cpu_seconds(lambda: read_columns(many)) / cpu_seconds(lambda: read_columns(few))
    assert ratio < 40  # 10; 100 where the time grows with the square
