"""`lop inspect` and `lop apply --check` as a user types them."""

import json
from pathlib import Path

import numpy as np
import pytest

import lop
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.inspection import inspect_checkpoint
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import UnsupportedModelError
from pruning.planning.plan import PruningPlan, RecoveryStep
from pruning.planning.ranking import Ranking
from tests.lop.commands.typed import typed
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking, weight_bytes
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture(scope="module")
def planned(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, its ranking, and `out`, what they make of the checkpoint."""
    folder = tmp_path_factory.mktemp("inspect")
    anatomy = read_anatomy(checkpoint)
    ranking = random_ranking(anatomy)
    plan = plan_for(anatomy, ranking, [*WIDTHS[:3], 0], [2, 1, 2, 2])
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "plan.ranking.safetensors").write_bytes(ranking.to_bytes())
    prune_checkpoint(checkpoint, plan, ranking, folder / "out", base_model="some-lab/tiny")
    return folder


def test_a_pruned_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], planned: Path, tmp_path: Path
) -> None:
    out, plan = planned / "out", PruningPlan.load(planned / "plan.json")
    assert typed(monkeypatch, "inspect", out, "--json", "--plot", tmp_path / "layers.png") == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["ffn_width"] for layer in found["layers"]] == [16, 8, 48, 0]
    assert [layer["kv_groups"] for layer in found["layers"]] == [2, 1, 2, 2]
    assert {layer["dense_ffn_width"] for layer in found["layers"]} == {48}
    assert (found["pruned"], found["base_model"], found["family"]) == (True, "some-lab/tiny", "llama")
    assert found["plan"] == plan.model_dump(mode="json")
    assert found["parameters"] == plan.achieved.parameters == sum(x.numel() for x in lop.load_pruned(out).parameters())
    assert found["weights_bytes"] == weight_bytes(out)
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert typed(monkeypatch, "inspect", out) == 0
    printed = capsys.readouterr().out
    for said in (
        "skipped",
        plan.plan_id,
        plan.ranking.sha256,
        "made from some-lab/tiny",
        "lop-vllm",
        "lop export gguf",
    ):
        assert said in printed


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("phi", ""),
        ("gemma3", ""),
        ("paligemma", ", not tried with this family"),
        ("smolvlm", ", text alone"),
        ("qwen3-vl", ", text alone"),
        ("llava-next", ", not tried with this family"),
    ],
)
def test_what_of_a_pruned_folder_vllm_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, family: str, said: str
) -> None:
    dense = save_tiny_checkpoint(tmp_path / "dense", family)
    anatomy = read_anatomy(dense)
    ranking = random_ranking(anatomy)
    prune_checkpoint(dense, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
    assert typed(monkeypatch, "inspect", tmp_path / "out", "--json") == 0
    runs_in = json.loads(capsys.readouterr().out)["runs_in"]
    assert [x for x in runs_in if "vLLM" in x] == [f"vLLM with lop-vllm installed beside it{said}"]


def test_llama_cpp_is_named_where_the_export_writes_a_file(tmp_path: Path) -> None:
    for family, context in (("llava-llama", None), ("mistral", 5), ("llava-phi", None), ("qwen3", None)):
        dense = save_tiny_checkpoint(tmp_path / family, family)
        anatomy = read_anatomy(dense)
        means = [np.ones(layer.ffn_width) for layer in anatomy.layers]
        scores = [np.ones(layer.ffn_width) for layer in anatomy.layers]
        ranking = Ranking.from_scores(anatomy, scores, means=means)
        plan = plan_for(anatomy, ranking, WIDTHS)
        # A bias on what is cut: llama.cpp's architecture for Qwen3 reads none there.
        plan = plan.model_copy(update={"recovery": (RecoveryStep(kind="bias"),)})
        out = prune_checkpoint(dense, plan, ranking, tmp_path / f"{family}-pruned")
        for folder in (dense, out):
            found, refusal = inspect_checkpoint(folder), None
            try:
                export_gguf(folder, folder / "x.gguf", context_length=context, checks_encoding=False)
            except UnsupportedModelError as error:
                refusal = f"lop export gguf: {error}"
            asked = "" if context is None else f" --context {context}"
            named = [x.partition(", layers")[0] for x in found.runs_in if "lop export gguf" in x]
            assert found.refused_by == (() if refusal is None else (refusal,))
            assert named == ([f"llama.cpp, by lop export gguf{asked}"] if refusal is None else [])
    assert "mlp.down_proj.bias" in found.refused_by[0]


def test_a_folder_without_a_plan_and_a_dense_one(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    planned: Path,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    lop.load_pruned(planned / "out").save_pretrained(tmp_path / "again")
    assert typed(monkeypatch, "inspect", tmp_path / "again") == 0
    assert "saved again since `lop apply`" in capsys.readouterr().out
    assert typed(monkeypatch, "inspect", checkpoint, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["pruned"], found["plan"]) == (False, None)
    assert typed(monkeypatch, "inspect", tmp_path / "nothing") == 2
    assert "must be a checkpoint folder" in capsys.readouterr().err


def test_apply_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], planned: Path, checkpoint: Path
) -> None:
    words = ("apply", "--plan", planned / "plan.json", "--model", checkpoint, "--out")
    before = {path: path.stat().st_mtime_ns for path in planned.rglob("*")}
    assert typed(monkeypatch, *words, planned / "out", "--check", "--json") == 0
    assert json.loads(capsys.readouterr().out)["weights_bytes"] == weight_bytes(planned / "out")
    assert typed(monkeypatch, *words, planned / "absent", "--check") == 2
    assert "must be a checkpoint folder" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in planned.rglob("*")} == before
