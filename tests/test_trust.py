"""Which code a config may name."""

from __future__ import annotations

import pytest

from mmrun.errors import UserError
from mmrun.trust import check_targets, targets


def test_targets_outside_the_trusted_packages():
    evil = {"fusion": {"_target_": "os.system"}, "x": [{"_target_": "mmrun.fusion.sum.Sum"}]}
    with pytest.raises(UserError, match=r"fusion\._target_.*os\.system.*--trust os"):
        check_targets(evil, ())
    check_targets(evil, ("os",))
    with pytest.raises(UserError, match="mmrunner"):
        check_targets({"_target_": "mmrunner.Thing"}, ())
    with pytest.raises(UserError, match=r"torch\.hub"):
        check_targets([{"deep": {"_target_": "torch.hub.load"}}], ())
    check_targets({"_target_": "torch.optim.SGD"}, ())
    assert targets(evil) == {"os", "mmrun"}
    assert targets({"a": 1, "b": []}) == set()
