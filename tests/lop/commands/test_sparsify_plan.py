"""`lop sparsify --plan`: each sub-layer as dense as the plan says, to the weight."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.rewriting.source import SPARSITY_REPORT
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.scope import Scope
from tests.lop.commands.test_sparsify_command import lop
from tests.tiny_models import write_conversations


def plan_of(anatomy: ModelAnatomy, options: Mapping[Site, Option], *, compensates: bool = False) -> PruningPlan:
    return make_plan(
        anatomy,
        Architecture.of(options),
        model_id="tiny",
        target=PlanTarget(sparsity=0.0),
        method="test",
        ranking=PlanRanking(sha256="0" * 64),
        compensates=compensates,
    )


def saved(plan: PruningPlan, folder: Path) -> Path:
    path = folder / "plan.json"
    path.write_text(plan.to_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_is_written_is_what_was_priced(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    """An attention and an FFN of one layer by their own densities, an FFN alone in another; the rest bit-equal."""
    anatomy = read_anatomy(checkpoint)
    wished = {Site(1, Sublayer.ATTENTION): 0.9, Site(1, Sublayer.FFN): 0.3, Site(2, Sublayer.FFN): 0.55}
    plan = plan_of(
        anatomy, {x: Option(anatomy.layers[x.layer].units(x.sublayer), density=d) for x, d in wished.items()}
    )
    data, out = write_conversations(tmp_path / "data", 2), tmp_path / "out"
    words = ("--out", out, "-d", data, "--plan", saved(plan, tmp_path), "--method", method, "--json")
    assert lop(monkeypatch, checkpoint, *words) == 0
    found = json.loads(capsys.readouterr().out)
    architecture = plan.architecture(anatomy)
    assert found["ratios"] == {"name": "plan", "plan_id": plan.plan_id, "architecture": architecture.key}
    assert found["zeroed"] / anatomy.decoder_parameters == plan.achieved.zeroed[Scope.DECODER]
    assert json.loads((out / SPARSITY_REPORT).read_text())["layers"][0]["density"] == 1.0

    dense, sparse = (dict(load_model(x).named_parameters()) for x in (checkpoint, out))
    for name, weight in dense.items():
        layer = next((n for n in range(4) if f"language_model.layers.{n}." in name), -1)
        sublayer = Sublayer.FFN if ".mlp." in name else Sublayer.ATTENTION
        density = wished.get(Site(layer, sublayer)) if weight.dim() == 2 else None
        if density is None:
            assert torch.equal(sparse[name], weight)
        else:
            assert int((sparse[name] == 0).sum()) == round(weight.numel() * (1 - density))


def test_plans_that_are_not_of_densities(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    anatomy, data = read_anatomy(checkpoint), write_conversations(tmp_path / "data", 1)
    sparse = {Site(0, Sublayer.FFN): Option(anatomy.layers[0].ffn_width, density=0.5)}
    for plan, message in (
        (plan_of(anatomy, sparse | {Site(1, Sublayer.FFN): Option(8)}), "densities, and nothing else"),
        (plan_of(anatomy, {}), "no density"),
        (plan_of(anatomy, sparse, compensates=True), "none of a plan's recovery steps"),
    ):
        words = ("--out", tmp_path / "out", "-d", data, "--plan", saved(plan, tmp_path))
        assert lop(monkeypatch, checkpoint, *words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [("--sparsity", 0.5), ("--pattern", "2:4"), ("--ratios", "owl"), ("--modules", "all")], ids=lambda x: x[0]
)
def test_a_plan_says_all_there_is_to_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[object, ...]
) -> None:
    missing = (tmp_path / "no", "--out", tmp_path / "out", "-d", tmp_path / "no.json", "--plan", tmp_path / "p.json")
    assert lop(monkeypatch, *missing, *words) == 2
    assert f"p.json and {words[0]}" in " ".join(capsys.readouterr().err.split())
