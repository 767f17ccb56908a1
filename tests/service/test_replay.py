"""Plans stay the same: every stored request is asked again, and held against what an earlier version answered.

The files in `tests/assets/replay` were made by the code before issue 12; `make_replay.py.txt` beside them says what is
in them. Where a request has several limits, `additive-dp` and `shortgpt` may choose otherwise, if it keeps them
all and is never worse by what the method minimises: that is how one solver may replace several. The predictors of the
database are of format version 3, whose policies are not decoded any more: what `lop` chooses may differ, says so, and
is as good as it was by what they expect, on average.
"""

import lzma
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcts.result import SearchResult
from mcts.settings import SearchSettings
from pruning.allocators.methods import Method
from pruning.errors import LopError
from pruning.measuring.statistics import ModelStatistics, StatisticsKind
from pruning.planning.plan_downgrade import downgrade
from service.methods.predicted import OF_CALIBRATION, WITHOUT_POLICY
from service.planner import Planner
from service.predictor_cache import PredictorCache
from service.schemas import PlanRequest
from storage.contract import Repository
from storage.database import upgrade
from storage.sql_repository import open_repository
from tests.assets.replay_files import ANSWERS, DATABASE, LIMITS, SCANS, limits_asked, read_json

TOLERANCE = 1e-9
"""Relative: floating point differs in the last digits from processor to processor."""

PREDICTED_TOLERANCE = 1e-5
"""Of what is predicted: the values add up hundreds of terms in float32, each processor in an order of its own."""

MAY_DIFFER = ("plan_id", "created_at")
MOST_SHOWN = 12

Answer = dict[str, Any]
Ask = Callable[[dict[str, Any]], Answer]


def upgraded(folder: Path) -> str:
    """A copy of the database, at our revision."""
    path = folder / "replay.db"
    path.write_bytes(lzma.decompress(DATABASE.read_bytes()))
    upgrade(f"sqlite:///{path}")
    return f"sqlite:///{path}"


JUDGED = "expects it of any configuration"
"""In the note of another method's plan that a predictor judged."""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """The stored database at this version's revision."""
    with open_repository(upgraded(tmp_path_factory.mktemp("replay"))) as repository:
        yield repository


@pytest.fixture(scope="module")
def ask(repository: Repository) -> Ask:
    """What this version answers: {"plan"} or {"error"}, as the stored answers have it."""
    planner = Planner(repository, PredictorCache(repository, capacity=4))

    def ask(request: dict[str, Any]) -> Answer:
        try:
            plan = planner.plan(_parsed(request))
            anatomy = repository.get_model(plan.model.id).anatomy
            document = downgrade(plan, anatomy).model_dump(mode="json")
            document["provenance"]["note"] = _without_new_remark(document["provenance"]["note"])
            return {"plan": document}
        except LopError as error:
            fields = ("rule", "values", "nearest", "binding", "nearest_values")
            said = {name: getattr(error, name, None) for name in fields}
            return {"error": {"class": type(error).__name__, **said}}

    return ask


def _without_new_remark(note: str) -> str:
    """Predictors of before say nothing of unseen conversations, and since then plans tell so; plans of other methods
    that are judged have no intervals since then."""
    told = note.replace(f"{JUDGED}, on the calibration conversations: an estimate without an interval", JUDGED)
    return "; ".join(remark for remark in told.split("; ") if remark != OF_CALIBRATION)


def _parsed(request: dict[str, Any]) -> PlanRequest:
    return PlanRequest.model_validate(_given(request))


@cache
def stored() -> list[Answer]:
    answers: list[Answer] = read_json(ANSWERS)
    for answer in answers:
        if "plan" in answer and JUDGED in (answer["plan"]["provenance"]["note"] or ""):
            predicted = answer["plan"]["predicted"]
            predicted["interval"] = None
            predicted.pop("accuracy_interval", None)
    return answers


def stored_with(*, several: bool) -> list[Answer]:
    """Stored answers to requests of several limits, or of one; but for plans of `lop`."""
    return [
        answer for answer in stored() if (len(limits_asked(answer["request"])) > 1) is several and not is_of_lop(answer)
    ]


def is_of_lop(answer: Answer) -> bool:
    return "plan" in answer and answer["plan"]["method"] == Method.LOP


# -- the comparisons --------------------------------------------------------------------------------------------------
def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON documents differ; figures in floating point may by `TOLERANCE`."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if name not in MAY_DIFFER]
        return [
            found for name in names for found in differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [found for index, pair in pairs for found in differences(*pair, f"{path}[{index}]")]
    tolerance = PREDICTED_TOLERANCE if ".predicted." in f".{path}" else TOLERANCE
    if isinstance(old, float) and isinstance(new, float) and np.isclose(old, new, rtol=tolerance, atol=0):
        return []
    return [] if old == new and type(old) is type(new) else [f"{path}: {old!r} -> {new!r}"]


def widths(plan: dict[str, Any]) -> list[int]:
    return [layer["ffn_width"] for layer in plan["layers"]]


def exceeded(plan: dict[str, Any]) -> list[str]:
    """Limits of the plan's target, the device's memory among them, that it does not keep."""
    asked = {name: limit for name in LIMITS if (limit := plan["target"]["budget"][name]) is not None}
    reached = {name: plan["achieved"][name] for name in asked}
    return [f"{name}: {reached[name]} of {limit}" for name, limit in asked.items() if not reached[name] <= limit]


def summed_losses(plan: dict[str, Any]) -> float:
    """What `additive-dp` minimises: one-layer losses of the stored scan, linear between its levels."""
    scan = _scans()[plan["model"]["id"]]
    rows = zip(widths(plan), scan["widths"], scan["table"], strict=True)
    return float(sum(np.interp(width, levels, losses) for width, levels, losses in rows))


@cache
def _scans() -> dict[str, Any]:
    scans: dict[str, Any] = read_json(SCANS)
    return scans


def influence_kept(plan: dict[str, Any], repository: Repository) -> float:
    """What `shortgpt` keeps as much of as it can: channels, each by the block influence of its layer."""
    record = repository.latest_statistics(plan["model"]["id"], StatisticsKind.ACTIVATIONS)
    assert record is not None
    statistics = ModelStatistics.from_bytes(repository.get_artifact(record.sha256).content)
    return float(statistics.arrays["block_influence"] @ widths(plan))


def worse(old: dict[str, Any], new: dict[str, Any], repository: Repository) -> list[str]:
    """Why `new`, a plan of other widths than `old` for several limits, is not as good by the method's own objective."""
    same = ("method", "model", "target", "ranking")
    found = differences({name: old[name] for name in same}, {name: new[name] for name in same})
    kept = [[{**layer, "ffn_width": None} for layer in plan["layers"]] for plan in (old, new)]
    if found := [*found, *differences(kept[0], kept[1], "layers")]:
        return found
    if old["method"] == "additive-dp":
        before, after = summed_losses(old), summed_losses(new)
    elif old["method"] == "shortgpt":
        before, after = -influence_kept(old, repository), -influence_kept(new, repository)
    else:
        return ["other widths, and no objective to hold them against"]
    return [] if after <= before + TOLERANCE * abs(before) else [f"objective: {before!r} -> {after!r}"]


def _given(document: dict[str, Any]) -> dict[str, Any]:
    """`document` without what was left out."""
    return {k: _given(v) if isinstance(v, dict) else v for k, v in document.items() if v is not None}


def report(found: list[tuple[Answer, Answer, list[str]]]) -> str:
    """The first requests that differ, with the widths of both plans."""
    lines = [f"{len(found)} requests differ"]
    for old, new, texts in found[:MOST_SHOWN]:
        lines += ["", f"request: {_given(old['request'])}", *(f"  {text}" for text in texts[:6])]
        for name, answer in (("old", old), ("new", new)):
            lines.append(f"  {name}: {widths(answer['plan']) if 'plan' in answer else answer['error']}")
    return "\n".join(lines)


# -- the tests --------------------------------------------------------------------------------------------------------
def test_plans_for_a_sparsity_or_one_limit_are_equal(ask: Ask) -> None:
    found = []
    for old in stored_with(several=False):
        new = ask(old["request"])
        if texts := differences({name: old[name] for name in old if name != "request"}, new):
            found.append((old, new, texts))
    if found:
        pytest.fail(report(found), pytrace=False)


def test_plans_for_several_limits_keep_them_and_are_never_worse(ask: Ask, repository: Repository) -> None:
    found = []
    for old in stored_with(several=True):
        new = ask(old["request"])
        if "plan" not in old or "plan" not in new:
            texts = differences({name: old[name] for name in old if name != "request"}, new)
        elif widths(old["plan"]) == widths(new["plan"]):
            texts = differences(old["plan"], new["plan"])
        else:
            texts = exceeded(new["plan"]) + worse(old["plan"], new["plan"], repository)
        if texts:
            found.append((old, new, texts))
    if found:
        pytest.fail(report(found), pytrace=False)


def test_plans_of_predictors_without_their_policy_keep_their_limits_and_are_as_good(ask: Ask) -> None:
    found, ratios = [], []
    for old in filter(is_of_lop, stored()):
        plan, before = ask(old["request"])["plan"], old["plan"]
        same = ("method", "model", "target", "ranking")
        texts = differences({name: before[name] for name in same}, {name: plan[name] for name in same})
        if plan["target"]["budget"] is not None:
            texts += exceeded(plan)
        if WITHOUT_POLICY not in plan["provenance"]["note"]:
            texts.append("the note does not say that there was no policy")
        if texts:
            found.append((old, {"plan": plan}, texts))
        if before["predicted"]["quality"] > 0.0:
            ratios.append(plan["predicted"]["quality"] / before["predicted"]["quality"])
    if found:
        pytest.fail(report(found), pytrace=False)
    assert len(ratios) > 200
    assert np.exp(np.mean(np.log(ratios))) < 1.01  # plans pay for doubt now, which predictions do not show
    assert np.mean(np.isclose(ratios, 1.0, rtol=0.01)) > 0.85


def test_a_search_of_before_that_is_run_again_is_the_stored_one(tmp_path: Path) -> None:
    with open_repository(upgraded(tmp_path)) as repository:
        anatomy = repository.get_model("reference").anatomy
        searches = repository.list_searches()
        planner = Planner(repository, PredictorCache(repository, capacity=4))
        asked = PlanRequest(model="reference", sparsity=0.1, method=Method.MCTS)
        plan = planner.plan(asked)
        assert len(searches) == 3
        for search in searches:
            outcome = dict(search.result or {})
            validation = outcome.pop("validation", None)
            again = outcome | {"search": SearchResult.from_dict(outcome["search"]).to_dict()}
            space = SearchSettings.from_dict(search.settings["search"]).space(anatomy)
            assert repository.record_search("reference", search.settings, again, space=space) == search
            assert repository.list_searches() == searches
            assert planner.plan(asked) == plan
        validated = repository.record_search(
            "reference", search.settings, again, space=space, validation={**(validation or {}), "id": "v"}
        )
        assert repository.list_searches() == [*searches[:-1], validated]


def test_stored_requests_are_of_every_kind() -> None:
    """Of the files alone, whatever this version does: files that are made anew with less would pass the tests above."""
    kinds: dict[str, list[int]] = {}
    for answer in stored():
        if "plan" in answer and answer["request"]["model"] == "reference":
            kinds.setdefault(answer["plan"]["method"], []).append(len(limits_asked(answer["request"])))
    assert len(kinds) == 12
    assert all(sum(count > 1 for count in counts) >= 10 for counts in kinds.values())
    assert all(sum(count == 1 for count in counts) >= 10 for counts in kinds.values())
    assert {answer["error"]["class"] for answer in stored() if "error" in answer} >= {
        "InfeasibleBudgetError",
        "InfeasibleTargetError",
        "InputError",
        "NotFoundError",
    }
