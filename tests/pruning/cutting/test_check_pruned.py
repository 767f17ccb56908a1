"""`lop apply --check`: a finished folder against its plan, and each way in which it can be something else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lop
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.headers import INDEX_NAME, stored_tensors
from pruning.checkpoints.loading import PLAN_NAME
from pruning.cutting.check_pruned import check_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.errors import CheckpointError, FingerprintMismatchError, PlanError
from pruning.planning.plan import BIAS, PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, kept_groups, plan_for, random_ranking, weight_bytes


@pytest.fixture(scope="module")
def ranking(anatomy: ModelAnatomy) -> Ranking:
    return random_ranking(anatomy)


@pytest.fixture(scope="module")
def plan(anatomy: ModelAnatomy, ranking: Ranking) -> PruningPlan:
    return plan_for(anatomy, ranking, WIDTHS, kept_groups(anatomy))


@pytest.fixture(scope="module")
def finished(checkpoint: Path, plan: PruningPlan, ranking: Ranking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prune_checkpoint(checkpoint, plan, ranking, tmp_path_factory.mktemp("check") / "out")


def test_a_folder_that_is_its_plan(checkpoint: Path, plan: PruningPlan, ranking: Ranking, finished: Path) -> None:
    told: list[tuple[int, int]] = []
    found = check_pruned(checkpoint, plan, ranking, finished, on_bytes=lambda done, total: told.append((done, total)))
    assert found.num_tensors == len(stored_tensors(finished))
    assert found.weights_bytes == weight_bytes(finished) == plan.achieved.disk_bytes
    assert told[-1] == (sum(x.num_bytes for x in stored_tensors(finished).values()),) * 2


def test_shards_and_biases(checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores, means = ([rng.random(x.ffn_width) for x in anatomy.layers] for _ in range(2))
    ranking = Ranking.from_scores(anatomy, scores, means=means)
    plan = plan_for(anatomy, ranking, WIDTHS).model_copy(update={"recovery": (BIAS,)})
    out = prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out", max_shard_size=30_000)
    assert (out / INDEX_NAME).is_file()
    assert check_pruned(checkpoint, plan, ranking, out).weights_bytes == weight_bytes(out)


def _flip(folder: Path) -> None:
    tensor = stored_tensors(folder)["language_model.model.layers.2.mlp.up_proj.weight"]
    content = bytearray(tensor.path.read_bytes())
    content[tensor.offset + 5] ^= 1
    tensor.path.write_bytes(content)


def _other_sizes(folder: Path) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["text_config"]["per_layer_config"]["0"]["intermediate_size"] = 24
    (folder / "config.json").write_text(json.dumps(document))


def _saved_again(folder: Path) -> None:
    model = lop.load_pruned(folder)
    decoder_view(model).out_projection(0).weight.data.add_(1)
    model.save_pretrained(folder)


def _half_written(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _newer_plan(folder: Path) -> None:
    document = json.loads((folder / PLAN_NAME).read_text()) | {"schema_version": 3}
    (folder / PLAN_NAME).write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_flip, r"weights must be those.*layers\.2\.mlp\.up_proj\.weight"),
        (_other_sizes, r"config\.json must record.*24"),
        (_saved_again, r"tensors|weights must be those"),
        (_half_written, r"as long as its header says"),
        (_newer_plan, r"schema_version.*3"),
        (lambda folder: (folder / PLAN_NAME).unlink(), rf"holds {PLAN_NAME}"),
        (lambda folder: (folder / "config.json").unlink(), r"holds config\.json"),
        (shutil.rmtree, r"must be a checkpoint folder"),
    ],
)
def test_each_difference_is_named(
    change: Callable[[Path], None],
    message: str,
    checkpoint: Path,
    plan: PruningPlan,
    ranking: Ranking,
    finished: Path,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    change(folder)
    with pytest.raises((CheckpointError, PlanError), match=message):
        check_pruned(checkpoint, plan, ranking, folder)


def test_another_plan_or_model(
    checkpoint: Path, anatomy: ModelAnatomy, plan: PruningPlan, ranking: Ranking, finished: Path
) -> None:
    other = plan_for(anatomy, ranking, [16, 8, 48, 48], kept_groups(anatomy))
    with pytest.raises(CheckpointError, match=f"asked for {other.plan_id}"):
        check_pruned(checkpoint, other, ranking, finished)
    foreign = plan.model_copy(update={"model": plan.model.model_copy(update={"fingerprint": "0" * 64})})
    with pytest.raises(FingerprintMismatchError):
        check_pruned(checkpoint, foreign, ranking, finished)
