"""Two processes clip as one does: FSDP2 shards, replicas of shards, DDP. They are started once, and told apart here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clip import two_ranks
from tests.running import start

CASES = [*two_ranks.CASES, *two_ranks.LAW_CASES]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """{case: what went wrong} of each rank."""
    directory = tmp_path_factory.mktemp("ranks")
    words = [("-m", "tests.clip.two_ranks", str(k), str(directory)) for k in range(2)]
    ranks = [start(python=each) for each in words]
    try:
        codes = [rank.wait(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0]
    return [json.loads((Path(directory) / f"{k}.json").read_text()) for k in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks(case: str, found: list[dict[str, str]]):
    assert [rank[case] for rank in found] == ["", ""], "\n".join(rank[case] for rank in found)


def test_every_case_is_told(found: list[dict[str, str]]):
    assert [set(rank) for rank in found] == [set(CASES)] * 2
