"""Random requests in the four spaces on a tiny model: all are kept to, and every kind is asked."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from benchmarks import axes_budgets as axes_budgets_module
from benchmarks.axes_budgets import BudgetMaker, axes_budgets
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.devices.device import profiled_device
from pruning.planning.axis_spaces import SPACES_OF_UNITS
from pruning.planning.make_plan import exceeded_limits
from tests.pruning.made_up_devices import made_up_profile
from tests.tiny_models import save_tiny_checkpoint


def test_every_request_is_kept_to_by_built_models(tmp_path: Path, quick_processes: None) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    profile = made_up_profile("this-machine", anatomy=read_anatomy(checkpoint), attention=True)
    found = axes_budgets(checkpoint, num_budgets=24, profile=profile, processes=1, work=tmp_path / "work")
    assert (found["budgets"], found["exceeded"], found["budget_cost_errors"], found["budgets_broken"]) == (24, 0, 0, [])
    assert sum(row["budgets"] for row in found["rows"]) == 24
    assert Counter(row["space"] for row in found["rows"]).keys() == {name.value for name in SPACES_OF_UNITS}
    assert min(found["budgets_by_tables"], found["budgets_by_roofline"]) > 0


class Killed(BaseException):
    """What stands for a kill."""


def test_killed_it_goes_on_after_the_chunks_that_were_checked(
    tmp_path: Path, quick_processes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(axes_budgets_module, "CHUNK", 6)
    checkpoint = save_tiny_checkpoint(tmp_path / "model")
    profile = made_up_profile("this-machine", anatomy=read_anatomy(checkpoint), attention=True)
    whole = axes_budgets(checkpoint, num_budgets=18, profile=profile, processes=1, work=tmp_path / "whole")

    def killed(done: int, _of: int) -> None:
        if done == 12:
            raise Killed

    run = partial(axes_budgets, checkpoint, num_budgets=18, profile=profile, processes=1, work=tmp_path / "work")
    with pytest.raises(Killed):
        run(on_progress=killed)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert len(before) >= 2
    found = run()
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("*.json")}
    assert len(after) == 3
    assert before.items() <= after.items()
    for document in (whole, found):
        document.pop("budgets_minutes")
    assert found == whole


def test_requests_are_those_of_their_seed_and_of_every_kind(tmp_path: Path) -> None:
    anatomy = read_anatomy(save_tiny_checkpoint(tmp_path / "model"))
    machine = profiled_device(made_up_profile("this-machine", anatomy=anatomy, attention=True))
    maker, again = (BudgetMaker(anatomy, machine, 7) for _ in range(2))
    made = [maker.make() for _ in range(80)]
    assert [x.plan.plan_id for x in made[:6]] == [again.make().plan.plan_id for _ in range(6)]
    assert Counter(x.request.space for x in made) == dict.fromkeys(SPACES_OF_UNITS, 20)
    assert {x.plan.achieved.latency_source for x in made} == {None, "measured", "roofline"}
    assert any(x.request.sparsity is not None for x in made)
    limited = {name for x in made if x.request.budget is not None for name in x.request.budget.limits}
    assert limited == {"memory_bytes", "latency_ms", "flops", "disk_bytes"}
    assert all(exceeded_limits(x.plan.target, x.plan.achieved) == [] for x in made)
