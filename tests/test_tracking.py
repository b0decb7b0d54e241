"""W&B: the mode is decided without asking anybody, and a real offline run holds what it should."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrun import tracking
from mmrun.errors import UserError
from tests.fake_wandb import GONE, HANG, KEY, FakeWandb


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def write_netrc(path: Path, host: str, password: str = KEY) -> None:
    path.write_text(f"machine {host}\n  login user\n  password {password}\n")
    path.chmod(0o600)


def test_auto_without_a_key_is_offline_and_says_so_in_one_line():
    mode, line = tracking.mode("auto")
    assert mode == "offline"
    assert "no key for api.wandb.ai" in line
    assert "\n" not in line


def test_none_and_offline_are_silent():
    assert tracking.mode("none") == ("none", "")
    assert tracking.mode("offline") == ("offline", "")


def test_wandb_without_a_key_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="wandb login"):
        tracking.mode("wandb")
    with pytest.raises(UserError, match="Did you mean offline"):
        tracking.mode("ofline")


@pytest.mark.parametrize("option", ["auto", "wandb"])
def test_a_key_in_the_environment_is_online(monkeypatch, option):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert tracking.mode(option) == ("online", "")
    assert KEY not in repr(tracking.mode(option))


@pytest.mark.parametrize(
    ("variable", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "none")]
)
@pytest.mark.parametrize("option", ["auto", "wandb"])
def test_wandb_mode_holds(monkeypatch, variable, mode, option):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", variable)
    found, line = tracking.mode(option)
    assert found == mode
    assert f"WANDB_MODE={variable}" in line


def test_netrc(monkeypatch, tmp_path):
    write_netrc(tmp_path / ".netrc", "api.wandb.ai")
    assert tracking.mode("auto")[0] == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:8080")
    assert tracking.mode("auto")[0] == "offline"  # a key for another server is none
    write_netrc(tmp_path / "other", "127.0.0.1:8080")
    monkeypatch.setenv("NETRC", str(tmp_path / "other"))
    assert tracking.mode("auto")[0] == "online"
    write_netrc(tmp_path / "other", "127.0.0.1:8080", '""')
    assert tracking.mode("auto")[0] == "offline"
    (tmp_path / "other").write_text("machine\nrubbish \x00")
    assert tracking.mode("auto")[0] == "offline"
    monkeypatch.setenv("NETRC", str(tmp_path))
    assert tracking.mode("auto")[0] == "offline"


def test_the_server_that_wandb_login_stored(monkeypatch, tmp_path):
    write_netrc(tmp_path / ".netrc", "api.wandb.ai")
    settings = tmp_path / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org/\n")
    assert tracking.base_url() == "https://wandb.example.org"
    assert tracking.mode("auto")[0] == "offline"
    settings.write_text("rubbish")
    assert tracking.base_url() == tracking.CLOUD
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost/")
    assert tracking.base_url() == "http://localhost"


def test_an_address_without_a_scheme_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", "localhost:8080")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    for option in ("auto", "wandb"):
        with pytest.raises(UserError, match="Write http://localhost:8080"):
            tracking.mode(option)
    assert tracking.mode("offline") == ("offline", "")


def test_ids_are_random_and_none_costs_nothing(tmp_path):
    assert len({tracking.new_id() for _ in range(100)}) == 100
    run = tracking.start("none", id="x", name="n", directory=tmp_path / "no", config={})
    assert run is None
    tracking.finish(run)
    assert tracking.describe(run, "none") == {"id": None, "url": None, "mode": "none"}
    assert not (tmp_path / "no").exists()


def test_what_json_has_no_number_for_is_sent_as_the_words_that_w_and_b_reads():
    given = {
        "a": math.inf,
        "b": [-math.inf, {"c": math.nan}],
        "d": (1, 2.5, None, True, "x"),
        3: {},
    }
    sent = {
        "a": "Infinity",
        "b": ["-Infinity", {"c": "NaN"}],
        "d": [1, 2.5, None, True, "x"],
        "3": {},
    }
    assert tracking.sendable(given) == sent
    assert json.loads(json.dumps(sent, allow_nan=False)) == sent


def test_finish_survives_a_server_that_is_gone(capsys):
    class Broken:
        id = "x"
        offline = True

        def finish(self, exit_code):
            raise BrokenPipeError(f"{exit_code} gone\nmore")

    tracking.finish(Broken(), 1)  # pyright: ignore[reportArgumentType] - a stand-in
    assert capsys.readouterr().err == "W&B: could not finish the run (1 gone)\n"


def python(
    code: str, tmp_path: Path, *words: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A process of its own: wandb starts a server and keeps state for as long as one lives."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | variables
    return subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run"), *words],
        env=environment | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )


OFFLINE = """
import sys
from pathlib import Path
from mmrun import tracking
where = Path(sys.argv[1])
config = {"clip": {"threshold": 0.5}, "seed": 1}
run = tracking.start("offline", id="abc", name="clip=0.5", directory=where, config=config,
                     group="sweep", tags=["norm", "concat"], job_type="train")
for step in range(5):
    run.log({"trainer/global_step": step, "train/loss": 5 - step, "val/loss": abs(3 - step)})
other = tracking.start("offline", id="xyz", name="second", directory=where, config={"seed": 2})
other.log({"trainer/global_step": 0, "train/loss": 9})
assert tracking.describe(run, "online") == {"id": "abc", "url": None, "mode": "offline"}
tracking.finish(run); tracking.finish(run); tracking.finish(other, 1)
"""


def test_a_real_offline_run_can_be_read_back(tmp_path):
    done = python(OFFLINE, tmp_path)
    assert (done.stdout, done.stderr) == ("", "")
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*-abc")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*-xyz"))
    seen = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json", path],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    summary = json.loads(seen.stdout)
    assert (summary["run_id"], summary["name"], summary["project"]) == ("abc", "clip=0.5", "mmrun")
    assert summary["config"] == {"clip": {"threshold": 0.5}, "seed": 1}
    assert summary["tags"] == ["norm", "concat"]
    assert (summary["state"], summary["exit_code"]) == ("finished", 0)
    assert summary["summary"]["val/loss"] == {"last": 1, "max": 3, "min": 0}
    assert summary["summary"]["train/loss"] == 1  # not mixed with the second run of the process


UNREACHABLE = """
import sys, time
from pathlib import Path
from mmrun import tracking
assert tracking.mode("wandb") == ("online", "")
began = time.monotonic()
for id in ("abc", "xyz"):
    run = tracking.start("online", id=id, name="n", directory=Path(sys.argv[1]), config={},
                         timeout_s=float(sys.argv[2]))
    assert tracking.describe(run, "online") == {"id": id, "url": None, "mode": "offline"}, run
    run.log({"a": 1})
    tracking.finish(run)
print(time.monotonic() - began)
"""


def fall_back(
    tmp_path: Path, how: int | str | None, key: str, timeout_s: float
) -> tuple[str, float]:
    """(what was said, seconds) of two runs for a server that fails in this way, or for a wrong key."""
    with FakeWandb() as server:
        server.ail(how)
        wanted = server.environment | {"WANDB_API_KEY": key}
        done = python(UNREACHABLE, tmp_path, str(timeout_s), **wanted)
    (line,) = done.stderr.splitlines()  # once: the second run does not wait again
    assert line.startswith("W&B: offline (")
    assert line.endswith("; upload later with: mmrun wandb sync")
    for id in ("abc", "xyz"):
        (path,) = (tmp_path / "run" / "wandb").glob(f"*run-*-{id}")  # and nothing of the attempt
        assert path.name.startswith("offline-run-")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not [path for path in files if key.encode() in path.read_bytes()]
    return line, float(done.stdout)


@pytest.mark.parametrize(
    ("how", "key", "reason"),
    [(GONE, KEY, "deadline"), (HANG, KEY, "deadline"), (403, KEY, "403"), (None, "short", "40+")],
    ids=["dead", "hanging", "refusing", "bad key"],
)
def test_no_way_to_the_server_falls_back_once(
    tmp_path: Path, how: int | str | None, key: str, reason: str
):
    line, _ = fall_back(tmp_path, how, key, 1)
    assert reason in line


@pytest.mark.slow
@pytest.mark.parametrize("how", [GONE, HANG, 500])
def test_a_dead_server_costs_at_most_20_seconds(tmp_path: Path, how: int | str):
    """Most of them are a timeout, so that a busy machine changes little."""
    _, seconds = fall_back(tmp_path, how, KEY, tracking.TIMEOUT_S)
    assert seconds < 20


LIGHTNING = """
import sys
from pathlib import Path
from pytorch_lightning.loggers import WandbLogger
from mmrun import tracking
run = tracking.start("offline", id="abc", name="n", directory=Path(sys.argv[1]), config={"a": 1})
logger = WandbLogger(experiment=run)
logger.log_hyperparams({"gradient_clip_val": 0.5})
logger.log_metrics({"val/loss": 2.0}, step=3)
assert logger.experiment is run
assert dict(run.config) == {"a": 1, "gradient_clip_val": 0.5}, run.config
assert run.summary["trainer/global_step"] == 3
tracking.finish(run)
"""


@pytest.mark.slow
def test_lightning_logs_into_it(tmp_path):
    python(LIGHTNING, tmp_path)
