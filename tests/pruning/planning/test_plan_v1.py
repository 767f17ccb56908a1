"""Plans of schema 1: read for ever under their own ids, and given back as they were."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Sublayer
from pruning.errors import FingerprintMismatchError, PlanError, PlanSchemaError
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
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.plan_parts import Provenance, content_id
from pruning.planning.plan_v1 import PlanV1
from pruning.planning.scope import Scope
from pruning.planning.workload import Budget
from tests.pruning.made_up import made_up_anatomy

ANATOMY = made_up_anatomy([64, 48, 64])
DENSE_WIDTHS, DENSE_GROUPS = (ANATOMY.dense_units(sublayer) for sublayer in (Sublayer.FFN, Sublayer.ATTENTION))
UNSEEN = "the predicted KL was measured on validation data, val (set abc), which the search never saw"
ASSET = Path(__file__).parent.parent / "assets" / "plan_0_1_0.json"

_shares = st.floats(0, 1, allow_nan=False)
_pairs = st.none() | st.tuples(_shares, _shares)
_maybe_counts = st.none() | st.integers(1, 2**40)
_budgets = st.builds(Budget, memory_bytes=_maybe_counts, flops=_maybe_counts, batch=st.integers(1, 9))
_targets = st.builds(
    PlanTarget,
    sparsity=st.none() | st.floats(0, 1, exclude_max=True),
    scope=st.sampled_from(Scope),
    budget=st.none() | _budgets,
    device=st.none() | st.text(max_size=5),
    round_to=st.none() | st.integers(1, 64),
    tp_size=st.none() | st.integers(1, 4),
)
_predicted = st.builds(
    Predicted,
    quality=_shares,
    of=st.just("calibration"),
    interval=_pairs,
    accuracy=st.none() | _shares,
    accuracy_interval=_pairs,
    agreement=st.none() | _shares,
)
_provenances = st.builds(
    Provenance, samples=st.integers(0, 9), seed=st.none() | st.integers(-3, 3), note=st.none() | st.text(max_size=9)
)


@st.composite
def plans(draw: st.DrawFn) -> PruningPlan:
    """Plans of schema 2 that schema 1 can say: widths, KV groups, skipped sub-layers, biases."""
    widths = [draw(st.integers(1, most)) for most in DENSE_WIDTHS]
    groups = [draw(st.integers(1, most)) for most in DENSE_GROUPS]
    plan = make_plan(
        ANATOMY,
        ANATOMY.architecture(widths, groups),
        model_id=draw(st.text(min_size=1, max_size=5)),
        target=draw(_targets),
        ranking=PlanRanking(sha256="1" * 64, url=draw(st.none() | st.text(max_size=5))),
        method=draw(st.text(max_size=5)),
        compensates=draw(st.booleans()),
        predicted=draw(st.none() | _predicted),
        provenance=draw(_provenances),
        created_at=draw(st.datetimes(timezones=st.just(None))),
        weights_sha256=draw(st.none() | st.just("2" * 64)),
    )
    skips = {x: draw(st.sampled_from(["", "ffn", "attention", "both"])) for x in range(3)}
    layers = {layer.index: {"ffn": layer.ffn, "attention": layer.attention} for layer in plan.layers}
    for index, skip in skips.items():
        for name in ("ffn", "attention"):
            if skip in (name, "both"):
                layers.setdefault(index, {"ffn": None, "attention": None})[name] = Kept(units=0)
    rows = tuple(PlanLayer(index=index, **kept) for index, kept in sorted(layers.items()))
    return plan.model_copy(update={"layers": rows})


@settings(max_examples=60)
@given(plan=plans())
def test_down_and_up_again_is_the_same_plan_and_up_and_down_again_the_same_bytes(plan: PruningPlan) -> None:
    old = downgrade(plan, ANATOMY)
    assert old.plan_id == plan.plan_id
    assert PlanV1.from_json(old.to_json()) == old
    upgraded = PruningPlan.from_json(old.to_json())
    # Schema 1 does not say what is dense: only together with the model is a plan of it in canonical form.
    assert upgraded.without_dense(ANATOMY) == plan
    assert upgraded.architecture(ANATOMY) == plan.architecture(ANATOMY)
    assert downgrade(upgraded, ANATOMY).to_json() == old.to_json()
    assert PruningPlan.from_json(upgraded.to_json()) == upgraded


def test_a_plan_of_version_0_1_0_is_read_and_given_back_as_it_was() -> None:
    # It knew of no compensation, activations, budgets, or times of a phase.
    text, anatomy = ASSET.read_text(), made_up_anatomy([64, 64])
    plan = PruningPlan.from_json(text)
    assert (plan.schema_version, plan.plan_id) == (2, "2937a4e4fbd53322a64e3a0b")
    assert (plan.achieved.activation_bytes, plan.target.round_to, plan.compensates) == (None, None, False)
    assert (plan.target.space, plan.achieved.zeroed, plan.achieved.removed["ffn"]) == (None, {}, 0.25)  # type: ignore[index]
    assert [x.model_dump() for x in plan.layers] == [
        {"index": 0, "ffn": {"units": 32}, "attention": {"units": 2}},
        {"index": 1, "ffn": {"units": 64}, "attention": {"units": 2}},
    ]
    old = downgrade(plan, replace(anatomy, fingerprint=plan.model.fingerprint))
    assert old.to_json() == text
    assert content_id(old.model_dump(mode="json", exclude={"plan_id", "created_at"})) == plan.plan_id


def test_what_a_quality_was_measured_on_was_said_in_the_note() -> None:
    document = json.loads(ASSET.read_text())
    document["predicted"] = {"quality": 0.5, "interval": None, "metric": "kl"}
    for note, of in ((UNSEEN, "unseen"), ("quality as a predictor expects it", "calibration"), (None, "calibration")):
        document["provenance"]["note"] = note
        plan = PruningPlan.from_json(json.dumps(document))
        assert plan.predicted is not None
        assert plan.predicted.of == of


def test_what_schema_1_calls_compensation_is_a_step_of_recovery() -> None:
    document = json.loads(ASSET.read_text())
    document["ranking"]["compensates"] = True
    assert PruningPlan.from_document(document).recovery == (BIAS,)


def made(anatomy: ModelAnatomy = ANATOMY) -> PruningPlan:
    return make_plan(
        anatomy,
        anatomy.architecture([32, 48, 64]),
        model_id="tiny",
        target=PlanTarget(sparsity=0.1, space=(Axis.FFN,)),
        ranking=PlanRanking(sha256="1" * 64),
        method="test",
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"layers": (PlanLayer(index=1, ffn=Kept(units=48, bits=4)),)}, r"layers\.1: .*'ffn': .*'bits': 4"),
        (
            {"layers": (PlanLayer(index=1, ffn=Kept(units=48, bits=4), attention=Kept(units=2, bits=8)),)},
            r"layers\.1: .*'bits': 4.*'bits': 8",
        ),
        ({"layers": (PlanLayer(index=2, attention=Kept(units=2, density=0.5)),)}, r"layers\.2: .*'attention'"),
        ({"recovery": (RecoveryStep(kind="distillation"),)}, "recovery: distillation"),
        ({"recovery": (BIAS, RecoveryStep(kind="reconstruction"))}, "recovery: bias, reconstruction"),
        ({"recovery": (RecoveryStep(kind="bias", settings={"of": "attention"}),)}, "recovery: bias"),
        ({"target": PlanTarget(sparsity=0.1, recovery=(BIAS,))}, "target.recovery"),
        ({"achieved": made().achieved.model_copy(update={"zeroed": {Scope.FFN: 0.5}})}, "achieved.zeroed"),
    ],
)
def test_what_schema_1_cannot_say_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(PlanSchemaError, match=named):
        downgrade(made().model_copy(update=change), ANATOMY)


def test_a_plan_is_downgraded_with_its_own_model_only() -> None:
    with pytest.raises(FingerprintMismatchError):
        downgrade(made(), replace(ANATOMY, fingerprint="f" * 64))
    with pytest.raises(FingerprintMismatchError):
        made().without_dense(replace(ANATOMY, fingerprint="f" * 64))


def layer(**change: object) -> dict[str, object]:
    return {"index": 0, "ffn_width": 32, "num_kv_groups": 2, "num_heads": 4, "weight_bits": None, "skip": []} | change


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (layer(ffn_width=-1), "layers.0.ffn_width"),
        (layer(ffn_width=1.5), "layers.0.ffn_width"),
        (layer(index=1), r"layers: .*numbered 0\.\.1"),
        (layer(skip=["ffn"]), "layers.0: an FFN is skipped if, and only if"),
        (layer(ffn_width=0), "layers.0: an FFN is skipped if, and only if"),
        (layer(skip=["attention"]), "layers.0: attention is skipped if, and only if"),
        (layer(num_kv_groups=0, num_heads=0), "layers.0: attention is skipped if, and only if"),
        (layer(num_heads=3), "layers.0: KV groups stay with all their heads"),
        (layer(num_heads=0), "layers.0: KV groups stay with all their heads"),
        (layer(num_heads=2), r"layers: KV groups stay with all their heads, not with \[1, 2\]"),
        (layer(weight_bits=17), "layers.0.weight_bits"),
        (layer(skip=["norm"]), "layers.0.skip.0"),
        (layer(ffn={"units": 32}), "layers.0.ffn"),
    ],
)
def test_a_broken_field_is_named(first: dict[str, object], named: str) -> None:
    document = json.loads(ASSET.read_text())
    document["layers"][0] = first
    for read in (PruningPlan.from_json, PlanV1.from_json):
        with pytest.raises(PlanError, match=rf"schema version 1: {named}") as error:
            read(json.dumps(document))
        assert "\n" not in str(error.value)


def test_a_layers_bits_are_those_of_both_sub_layers() -> None:
    document, anatomy = json.loads(ASSET.read_text()), made_up_anatomy([64, 64])
    document["layers"][0] = layer(weight_bits=4, ffn_width=0, skip=["ffn"])
    document["layers"][1] |= {"weight_bits": 16}
    plan = PruningPlan.from_document(document)
    assert plan.layers == (
        PlanLayer(index=0, ffn=Kept(units=0), attention=Kept(units=2, bits=4)),
        PlanLayer(index=1, ffn=Kept(units=64, bits=16), attention=Kept(units=2, bits=16)),
    )
    old = downgrade(plan, replace(anatomy, fingerprint=plan.model.fingerprint))
    assert old == PlanV1.model_validate(document)
    assert [x.weight_bits for x in old.layers] == [4, 16]
