"""The plan document: strict, immutable, round-tripping."""

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.errors import PlanError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, Predicted, PruningPlan, content_id
from tests.pruning.made_up import made_up_anatomy

ANATOMY = made_up_anatomy([64, 64])


@pytest.fixture
def plan() -> PruningPlan:
    return make_plan(
        ANATOMY,
        ANATOMY.architecture([32, 64]),
        model_id="tiny",
        target=PlanTarget(sparsity=0.25),
        method="test",
        ranking=PlanRanking(sha256="1" * 64, url="/v1/models/tiny/ranking"),
    )


def test_json_round_trip_is_exact(plan: PruningPlan, tmp_path: Path) -> None:
    assert PruningPlan.from_json(plan.to_json()) == plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_a_plan_of_version_0_1_0_is_read_and_written_as_it_was() -> None:
    # It knew of no compensation, activations, budgets, or times of a phase.
    text = (Path(__file__).parent.parent / "assets" / "plan_0_1_0.json").read_text()
    plan = PruningPlan.from_json(text)
    assert plan.to_json() == text
    assert (plan.achieved.activation_bytes, plan.target.round_to, plan.ranking.compensates) == (None, None, False)
    assert content_id(plan.model_dump(mode="json", exclude={"plan_id", "created_at"})) == plan.plan_id


def test_the_weights_that_were_ranked_are_part_of_a_plan(plan: PruningPlan) -> None:
    assert "weights_sha256" not in json.loads(plan.to_json())["model"]
    known = make_plan(
        ANATOMY, ANATOMY.architecture([32, 64]), model_id="tiny", target=plan.target, method="test",
        ranking=plan.ranking, weights_sha256="a" * 64,
    )  # fmt: skip
    assert PruningPlan.from_json(known.to_json()).model.weights_sha256 == "a" * 64
    assert known.plan_id != plan.plan_id


def test_the_schema_has_every_axis(plan: PruningPlan) -> None:
    document = json.loads(plan.to_json())
    assert document.keys() == {
        "schema_version", "plan_id", "method", "created_at", "model", "target", "layers", "ranking", "achieved",
        "predicted", "provenance",
    }  # fmt: skip
    assert document["layers"][0] == {
        "index": 0, "ffn_width": 32, "num_kv_groups": 2, "num_heads": 4, "weight_bits": None, "skip": [],
    }  # fmt: skip
    assert document["target"].keys() == {"sparsity", "scope", "budget", "device"}


def test_the_id_is_the_contents(plan: PruningPlan) -> None:
    again = plan.model_copy(update={"created_at": None})
    assert again.plan_id == plan.plan_id
    other = make_plan(
        ANATOMY,
        ANATOMY.architecture([64, 32]),
        model_id="tiny",
        target=plan.target,
        method="test",
        ranking=plan.ranking,
    )
    assert other.plan_id != plan.plan_id


@pytest.mark.parametrize(
    ("where", "value", "named"),
    [
        (("layers", 0, "ffn_width"), -1, "layers.0.ffn_width"),
        (("layers", 0, "ffn_width"), 1.5, "layers.0.ffn_width"),
        (("layers", 1, "index"), 0, "numbered"),
        (("model", "fingerprint"), "xyz", "model.fingerprint"),
        (("schema_version",), 2, "schema_version"),
        (("surprise",), 1, "surprise"),
        (("target", "sparsity"), 1.0, "target.sparsity"),
        (("layers",), [], "layers"),
    ],
)
def test_a_broken_field_is_named(plan: PruningPlan, where: tuple[Any, ...], value: Any, named: str) -> None:
    document = json.loads(plan.to_json())
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(PlanError, match=named):
        PruningPlan.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"plan_id": 1}'])
def test_something_else_is_no_plan(text: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="schema version 1"):
        PruningPlan.from_json(text)
    with pytest.raises(PlanError, match="readable"):
        PruningPlan.load(tmp_path / "missing.json")


def test_agreement_is_written_where_it_was_predicted() -> None:
    without = Predicted(quality=0.25, interval=(0.125, 0.5), accuracy=0.75, accuracy_interval=(0.5, 1.0))
    assert without.model_dump_json() == (
        '{"quality":0.25,"interval":[0.125,0.5],"metric":"kl","accuracy":0.75,"accuracy_interval":[0.5,1.0]}'
    )
    agreeing = Predicted(quality=0.25, agreement=0.875, agreement_interval=(0.75, 1.0))
    assert agreeing.model_dump(mode="json") == {
        "quality": 0.25,
        "interval": None,
        "metric": "kl",
        "agreement": 0.875,
        "agreement_interval": [0.75, 1.0],
    }
    assert Predicted.model_validate_json(agreeing.model_dump_json()) == agreeing
