"""Damaged checkpoints and plans that do not fit: refused with the rule, the values and the remedy; nothing is left."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.headers import INDEX_NAME, read_headers, weights_sha256
from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan
from pruning.errors import CheckpointError, FingerprintMismatchError, PlanError, UnsupportedModelError
from pruning.planning.plan import PruningPlan
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_no_folder_no_config_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be a checkpoint folder"):
        read_headers(tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_headers(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"must be safetensors.*pytorch_model\.bin.*save_pretrained"):
        read_headers(tmp_path)


@pytest.mark.parametrize("cut", [1, 1000, 40_000])
def test_a_truncated_shard(copy: Path, cut: int) -> None:
    shard = shards(copy)[0]
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(CheckpointError, match=r"whole|as long as its header says"):
        read_headers(copy)
    with pytest.raises(CheckpointError):
        load_model(copy)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip file, as torch.save makes", b"\x08\0\0\0\0\0\0\0notjson!"])
def test_a_weight_file_of_another_format(copy: Path, content: bytes) -> None:
    shards(copy)[0].write_bytes(content)
    with pytest.raises(CheckpointError, match="safetensors format"):
        read_headers(copy)


def test_a_missing_shard_and_an_index_that_points_elsewhere(copy: Path) -> None:
    index = json.loads((copy / INDEX_NAME).read_text())
    shards(copy)[1].unlink()
    with pytest.raises(CheckpointError, match="every shard"):
        read_headers(copy)
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../outside.safetensors"
    (copy / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="its own folder"):
        read_headers(copy)
    (copy / INDEX_NAME).write_text("[]")
    with pytest.raises(CheckpointError, match="weight_map"):
        read_headers(copy)


def test_a_config_that_says_otherwise(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"shapes that the config says.*\[48, 32\], should be \[64, 32\]"):
        read_anatomy(copy)
    config["text_config"].update(intermediate_size=48, num_hidden_layers=5)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="every decoder layer"):
        read_anatomy(copy)
    config["model_type"] = "no-such-model"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="transformers knows"):
        read_anatomy(copy)


@pytest.mark.parametrize("number", [284, 10**6, -285])
def test_a_padding_token_without_an_embedding(copy: Path, number: int) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["pad_token_id"] = number
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"pad_token_id must be one of.*pad_token_id={number}, vocab_size=284"):
        read_anatomy(copy)
    with pytest.raises(CheckpointError, match="must load"):
        load_model(copy)


def test_old_configs_count_the_padding_token_from_the_end(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["pad_token_id"] = -1
    (copy / "config.json").write_text(json.dumps(config))
    read_anatomy(copy)


def test_a_family_outside_the_table_is_refused_by_name(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["model_type"] = "granite"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"'granite'.*Supported: gemma, .*llama"):
        read_anatomy(copy)


def test_missing_tensors_are_not_made_up(copy: Path) -> None:
    shard = next(path for path in shards(copy) if any("mlp" in name for name in read_headers(copy)))
    save_file({"unrelated": np.zeros(3, np.float32)}, shard, metadata={"format": "pt"})
    with pytest.raises(CheckpointError):
        load_model(copy)


def test_a_folder_without_a_processor(copy: Path) -> None:
    for path in copy.glob("*"):
        if "token" in path.name or "process" in path.name:
            path.unlink()
    with pytest.raises(CheckpointError, match="processor"):
        load_processor(copy)


def test_a_dense_folder_is_not_a_pruned_one(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lop_plan"):
        load_pruned(checkpoint)
    with pytest.raises(CheckpointError, match="checkpoint folder"):
        load_pruned(tmp_path / "missing")


class TestApplying:
    @pytest.fixture
    def ranking(self, anatomy: ModelAnatomy) -> Ranking:
        return random_ranking(anatomy)

    def test_a_plan_for_another_model(self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy) -> None:
        other = read_anatomy(save_tiny_checkpoint(tmp_path / "other", "llava-llama-biases"))
        ranking = random_ranking(other)
        plan = plan_for(other, ranking, WIDTHS)
        with pytest.raises(FingerprintMismatchError, match=f"model has {anatomy.fingerprint[:12]}"):
            prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
        with pytest.raises(FingerprintMismatchError):
            apply_plan(load_model(checkpoint), plan, ranking)
        assert not (tmp_path / "out").exists()

    def test_a_ranking_that_the_plan_does_not_name(
        self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy, ranking: Ranking
    ) -> None:
        other = Ranking.from_scores(anatomy, [np.arange(48.0)] * 4)
        with pytest.raises(FingerprintMismatchError, match="ranking that it names"):
            prune_checkpoint(checkpoint, plan_for(anatomy, other, WIDTHS), ranking, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"ffn": {"units": 8, "bits": 4}}, "layer 1, ffn"),
            ({"ffn": {"units": 8, "density": 0.5}}, "layer 1, ffn"),
            ({"attention": {"units": 1, "bits": 8}}, "layer 1, attention"),  # half a group of 32 inputs
            ({"ffn": {"units": 49}}, "each layer keeps"),
            ({"attention": {"units": 3}}, "KV groups \\(got layer 1: 3 of 2\\)"),
            ({"index": 4}, "layers are numbered 0..3"),
        ],
    )
    def test_a_plan_that_cannot_be_applied(
        self,
        checkpoint: Path,
        anatomy: ModelAnatomy,
        ranking: Ranking,
        change: dict[str, object],
        named: str,
        tmp_path: Path,
    ) -> None:
        document = plan_for(anatomy, ranking, WIDTHS).model_dump(mode="json")
        document["layers"] = [document["layers"][0], document["layers"][1] | change]
        plan = PruningPlan.from_json(json.dumps(document))
        with pytest.raises(PlanError, match=named):
            apply_plan(load_model(checkpoint), plan, ranking)
        with pytest.raises(PlanError, match=named):
            prune_checkpoint(checkpoint, plan, ranking, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_output_folder_is_left_alone(
        self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy, ranking: Ranking
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "precious").write_text("x")
        with pytest.raises(CheckpointError, match="must not exist yet"):
            prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]

    def test_the_source_is_never_touched(
        self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy, ranking: Ranking
    ) -> None:
        before = weights_sha256(checkpoint), (checkpoint / "config.json").read_bytes()
        prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
        assert before == (weights_sha256(checkpoint), (checkpoint / "config.json").read_bytes())

    def test_a_pruned_checkpoint_cannot_be_planned_for_again(
        self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy, ranking: Ranking
    ) -> None:
        out = prune_checkpoint(checkpoint, plan_for(anatomy, ranking, WIDTHS), ranking, tmp_path / "out")
        with pytest.raises(UnsupportedModelError, match="dense checkpoint"):
            read_anatomy(out)

    def test_a_model_that_was_not_cut_is_not_saved_as_pruned(
        self, checkpoint: Path, tmp_path: Path, anatomy: ModelAnatomy, ranking: Ranking
    ) -> None:
        with pytest.raises(CheckpointError, match="apply_plan"):
            save_pruned(load_model(checkpoint), plan_for(anatomy, ranking, WIDTHS), tmp_path / "out")
        assert not (tmp_path / "out").exists()
