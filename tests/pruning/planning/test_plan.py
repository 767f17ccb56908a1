"""The plan document: strict, immutable, round-tripping."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.errors import FingerprintMismatchError, PlanError
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import (
    BIAS,
    Axis,
    Kept,
    PlanLayer,
    PlanRanking,
    PlanTarget,
    Predicted,
    PruningPlan,
    RecoveryStep,
)
from pruning.planning.plan_parts import content_id
from tests.pruning.made_up import made_up_anatomy

ANATOMY = made_up_anatomy([64, 64])


@pytest.fixture
def plan() -> PruningPlan:
    return make_plan(
        ANATOMY,
        ANATOMY.architecture([32, 64]),
        model_id="tiny",
        target=PlanTarget(sparsity=0.25, space=(Axis.FFN,)),
        method="test",
        ranking=PlanRanking(sha256="1" * 64, url="/v1/models/tiny/ranking"),
    )


def test_json_round_trip_is_exact(plan: PruningPlan, tmp_path: Path) -> None:
    assert PruningPlan.from_json(plan.to_json()) == plan
    (tmp_path / "plan.json").write_text(plan.to_json())
    assert PruningPlan.load(tmp_path / "plan.json") == plan


def test_the_weights_that_were_ranked_are_part_of_a_plan(plan: PruningPlan) -> None:
    assert "weights_sha256" not in json.loads(plan.to_json())["model"]
    known = make_plan(
        ANATOMY, ANATOMY.architecture([32, 64]), model_id="tiny", target=plan.target, method="test",
        ranking=plan.ranking, weights_sha256="a" * 64,
    )  # fmt: skip
    assert PruningPlan.from_json(known.to_json()).model.weights_sha256 == "a" * 64
    assert known.plan_id != plan.plan_id


def test_the_document(plan: PruningPlan) -> None:
    document = json.loads(plan.to_json())
    assert document.keys() == {
        "schema_version", "plan_id", "method", "created_at", "model", "target", "layers", "ranking", "recovery",
        "achieved", "predicted", "provenance",
    }  # fmt: skip
    assert document["schema_version"] == 2
    assert document["layers"] == [{"index": 0, "ffn": {"units": 32}}]  # layer 1 is dense
    assert document["recovery"] == []
    assert document["target"] == {
        "sparsity": 0.25, "scope": "ffn", "budget": None, "device": None, "space": ["ffn"], "recovery": None,
    }  # fmt: skip
    assert (document["achieved"]["removed"]["ffn"], document["achieved"]["zeroed"]) == (0.25, {})


def test_every_axis_has_its_place(plan: PruningPlan) -> None:
    layers = (
        PlanLayer(index=0, ffn=Kept(units=64, bits=4, density=0.5), attention=Kept(units=0)),
        PlanLayer(index=1, attention=Kept(units=1)),
    )
    steps = (RecoveryStep(kind="reconstruction", settings={"damping": 0.1, "after": ["bias"]}), BIAS)
    target = plan.target.model_copy(update={"space": tuple(Axis), "recovery": steps})
    full = plan.model_copy(update={"layers": layers, "recovery": steps, "target": target})
    document = json.loads(full.to_json())
    assert document["layers"] == [
        {"index": 0, "ffn": {"units": 64, "bits": 4, "density": 0.5}, "attention": {"units": 0}},
        {"index": 1, "attention": {"units": 1}},
    ]
    assert list(document["recovery"][0]["settings"]) == ["after", "damping"]
    assert document["recovery"][1] == {"kind": "bias"}
    assert PruningPlan.from_json(full.to_json()) == full
    assert full.compensates


def test_an_architecture_is_of_the_plans_own_model(plan: PruningPlan) -> None:
    anatomy = made_up_anatomy([64, 64])
    assert plan.architecture(anatomy) == anatomy.architecture([32, 64])
    layers = (PlanLayer(index=1, attention=Kept(units=0), ffn=Kept(units=64, bits=4, density=0.5)),)
    skipping = plan.model_copy(update={"layers": layers})
    assert skipping.architecture(anatomy) == Architecture.of(
        {Site(1, Sublayer.ATTENTION): Option(0), Site(1, Sublayer.FFN): Option(64, bits=4, density=0.5)}
    )
    with pytest.raises(FingerprintMismatchError):
        plan.architecture(replace(anatomy, fingerprint="f" * 64))
    beyond = plan.model_copy(update={"layers": (PlanLayer(index=2, ffn=Kept(units=8)),)})
    with pytest.raises(PlanError, match=r"numbered 0\.\.1 \(got layer 2\)"):
        beyond.architecture(anatomy)


def test_a_dense_plan_lists_no_layers(plan: PruningPlan) -> None:
    dense = make_plan(
        ANATOMY,
        ANATOMY.architecture([64, 64]),
        model_id="tiny",
        target=plan.target,
        method="test",
        ranking=plan.ranking,
    )
    assert dense.layers == ()
    assert PruningPlan.from_json(dense.to_json()) == dense


def test_the_id_is_the_contents(plan: PruningPlan) -> None:
    document = json.loads(plan.to_json())
    assert content_id({k: v for k, v in document.items() if k not in {"plan_id", "created_at"}}) == plan.plan_id
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
        (("layers", 0, "ffn", "units"), -1, "layers.0.ffn.units"),
        (("layers", 0, "ffn", "units"), 1.5, "layers.0.ffn.units"),
        (("layers", 0, "ffn", "units"), True, "layers.0.ffn.units"),
        (("layers", 0, "ffn", "bits"), 17, "layers.0.ffn.bits"),
        (("layers", 0, "ffn", "density"), 1.0, "layers.0.ffn.density"),
        (("layers", 0, "ffn", "density"), 0, "layers.0.ffn.density"),
        (("layers", 0, "ffn"), {"units": 0, "bits": 4}, "layers.0.ffn: a sub-layer that is skipped"),
        (("layers", 0, "ffn"), None, "layers.0: a layer that is dense is left out"),
        (("layers", 0, "ffn_width"), 32, "layers.0.ffn_width"),
        (("layers", 1), {"index": 0, "attention": {"units": 1}}, r"layers: .*each once, found \[0, 0\]"),
        (("layers",), None, "layers"),
        (("model", "fingerprint"), "xyz", "model.fingerprint"),
        (("recovery",), [{"kind": "hope"}], "recovery.0.kind"),
        (("recovery",), [{"kind": "bias", "settings": {"x": math.nan}}], "recovery.0.settings"),
        (("target", "space"), ["vision"], "target.space.0"),
        (("surprise",), 1, "surprise"),
        (("target", "sparsity"), 1.0, "target.sparsity"),
        (("predicted",), {"quality": 0.5}, "predicted.of"),
        (("achieved", "parameters"), math.inf, "achieved.parameters"),
    ],
)
def test_a_broken_field_is_named(plan: PruningPlan, where: tuple[Any, ...], value: Any, named: str) -> None:
    document = json.loads(plan.to_json())
    document["layers"].append({"index": 1, "attention": {"units": 1}})
    place = document
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(PlanError, match=rf"schema version 2: {named}") as error:
        PruningPlan.from_json(json.dumps(document))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("version", [0, 3, True, 1.0, "1", None, [], 10**30])
def test_an_unknown_schema_is_named(plan: PruningPlan, version: object) -> None:
    document = json.loads(plan.to_json()) | {"schema_version": version}
    with pytest.raises(PlanError, match=r"schema_version: this version reads plans of schema version 1 and 2") as error:
        PruningPlan.from_json(json.dumps(document))
    assert repr(version) in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", '{"plan_id": 1}', "1", b"\xff", "[" * 100_000])
def test_something_else_is_no_plan(text: str | bytes, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="not a valid pruning plan") as error:
        PruningPlan.from_json(text)
    assert "\n" not in str(error.value)
    with pytest.raises(PlanError, match="readable"):
        PruningPlan.load(tmp_path / "missing.json")


def test_agreement_is_written_where_it_was_predicted() -> None:
    without = Predicted(of="unseen", quality=0.25, interval=(0.125, 0.5), accuracy=0.75, accuracy_interval=(0.5, 1.0))
    assert without.model_dump_json() == (
        '{"quality":0.25,"interval":[0.125,0.5],"metric":"kl","of":"unseen","accuracy":0.75,"accuracy_interval":[0.5,1.0]}'
    )
    agreeing = Predicted(of="calibration", quality=0.25, agreement=0.875, agreement_interval=(0.75, 1.0))
    assert agreeing.model_dump(mode="json") == {
        "quality": 0.25,
        "interval": None,
        "metric": "kl",
        "of": "calibration",
        "agreement": 0.875,
        "agreement_interval": [0.75, 1.0],
    }
    assert Predicted.model_validate_json(agreeing.model_dump_json()) == agreeing
