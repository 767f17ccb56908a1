"""What is not pruned: refused by name, from the config and the headers alone, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import AutoConfig

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_model
from pruning.cutting.prune_checkpoint import prune_checkpoint, save_pruned
from pruning.cutting.surgery import apply_plan, cut_model
from pruning.errors import CheckpointError, InputError, PlanError, UnsupportedModelError
from pruning.planning.plan import PruningPlan
from pruning.planning.plan_downgrade import downgrade
from pruning.planning.ranking import Ranking
from tests.pruning.cut_models import WIDTHS, plan_for, random_ranking
from tests.tiny_models import save_tiny_checkpoint

MIXTURE, STATE_SPACE = "mixture-of-experts layers", "state-space layers"
ENCODER_DECODER = "encoder-decoder"


def save_config(folder: Path, model_type: str, **changed: Any) -> Path:
    """A folder with a real config of transformers, and weights that nobody may get to."""
    AutoConfig.for_model(model_type, **changed).save_pretrained(folder)
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        *((name, MIXTURE) for name in ("mixtral", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "deepseek_v3", "gpt_oss")),
        *((name, MIXTURE) for name in ("llama4", "phimoe", "jamba", "qwen3_next")),
        *((name, STATE_SPACE) for name in ("mamba", "mamba2", "falcon_mamba", "jamba", "falcon_h1", "bamba", "zamba2")),
        ("qwen3_next", STATE_SPACE),
        ("recurrent_gemma", "linear_attention"),
        *((name, ENCODER_DECODER) for name in ("t5", "bart", "whisper", "florence2", "t5gemma")),
        *((name, name) for name in ("rwkv", "bert", "gpt2", "opt", "phi4_multimodal", "cohere", "gemma3n")),
    ],
)
def test_other_architectures_are_refused_by_name(model_type: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        read_anatomy(save_config(tmp_path, model_type))


def test_convolutions_between_attention_layers(tmp_path: Path) -> None:
    folder = save_config(tmp_path, "lfm2", num_hidden_layers=2, full_attn_idxs=[1])
    with pytest.raises(UnsupportedModelError, match=r"lfm2.*conv"):
        read_anatomy(folder)


@pytest.mark.parametrize("model_type", ["qwen2_audio", "voxtral", "colpali"])
def test_a_supported_decoder_in_a_model_that_nothing_here_loads(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"image-text model or a language model.*{model_type}"):
        read_anatomy(save_config(tmp_path, model_type))


@pytest.mark.parametrize("model_type", ["openelm", "nemotron-nas"])
def test_models_that_need_their_own_code(model_type: str, tmp_path: Path) -> None:
    folder = save_config(tmp_path, "llama")
    document = {"model_type": model_type, "auto_map": {"AutoConfig": "configuration.Config"}, "block_configs": []}
    (folder / "config.json").write_text(json.dumps(document))
    (folder / "configuration.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match=r"transformers knows"):
        read_anatomy(folder)


def test_layers_that_differ_already(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"per_layer_config": {"1": {"intermediate_size": 8}}, "allow_global_per_layer_attribute_access": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match="per_layer_config says that layers differ"):
        read_anatomy(folder)


def test_quantised_weights(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModelError, match=r"'gptq'.*unquantised"):
        read_anatomy(folder)


def test_towers_with_projections_of_the_same_names_are_not_the_decoder(tmp_path: Path) -> None:
    """As of a resampler, an audio tower, or a draft head: they are nobody's, and not taken for layers."""
    folder = save_tiny_checkpoint(tmp_path, "llama")
    from safetensors.numpy import load_file

    tensors = load_file(folder / "model.safetensors")
    for tower in ("model.connector.perceiver_resampler", "audio_tower", "mtp", "model.vision_model.encoder"):
        name = f"{tower}.layers.0.mlp.down_proj.weight"
        more = {name: np.zeros((3, 5), np.float32)}
        save_file({**tensors, **more}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=f"no tensors that its model has not.*{name}"):
            read_anatomy(folder)


class TestPlans:
    """Plans that ask for heads or groups that cannot be had."""

    @pytest.fixture
    def ranking(self, anatomy: ModelAnatomy) -> Ranking:
        return random_ranking(anatomy)

    @pytest.mark.parametrize(
        "change",
        [
            {"num_kv_groups": 1},  # and still four heads
            {"num_heads": 2},  # and still two groups
            {"num_kv_groups": 3, "num_heads": 6},
            {"num_kv_groups": 0, "num_heads": 0},
            {"num_kv_groups": 2, "num_heads": 3},
        ],
    )
    def test_heads_out_of_step_with_groups(
        self, checkpoint: Path, anatomy: ModelAnatomy, ranking: Ranking, change: dict[str, int], tmp_path: Path
    ) -> None:
        document = downgrade(plan_for(anatomy, ranking, WIDTHS), anatomy).model_dump(mode="json")
        document["layers"][2].update(change)
        text, model = json.dumps(document), load_model(checkpoint)
        for apply in (
            lambda: apply_plan(model, PruningPlan.from_json(text), ranking),
            lambda: prune_checkpoint(checkpoint, PruningPlan.from_json(text), ranking, tmp_path / "out"),
        ):
            with pytest.raises(PlanError, match=r"KV groups"):
                apply()
        assert list(tmp_path.iterdir()) == []
        assert not getattr(model.config.get_text_config(), "is_heterogeneous", False)

    def test_a_ranking_that_orders_no_groups(self, checkpoint: Path, anatomy: ModelAnatomy, tmp_path: Path) -> None:
        channels_only = Ranking(random_ranking(anatomy).ffn, anatomy.fingerprint)
        plan = plan_for(anatomy, channels_only, WIDTHS, [2, 1, 2, 2])
        with pytest.raises(PlanError, match="a ranking that orders them"):
            prune_checkpoint(checkpoint, plan, channels_only, tmp_path / "out")
        with pytest.raises(PlanError, match="a ranking that orders them"):
            cut_model(load_model(checkpoint), plan.architecture(anatomy), channels_only)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_whose_groups_are_not_the_plans_is_not_saved(
        self, checkpoint: Path, anatomy: ModelAnatomy, ranking: Ranking, tmp_path: Path
    ) -> None:
        model = load_model(checkpoint)
        cut_model(model, anatomy.architecture(WIDTHS), ranking)
        with pytest.raises(CheckpointError, match="apply_plan"):
            save_pruned(model, plan_for(anatomy, ranking, WIDTHS, [2, 1, 2, 2]), tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("layer", "sublayer", "option", "said"),
        [
            (1, Sublayer.FFN, Option(49), "all of its channels .*layer 1: 49 of 48"),
            (2, Sublayer.ATTENTION, Option(3), "all of its KV groups .*layer 2: 3 of 2"),
            (4, Sublayer.ATTENTION, Option(1), "all of its KV groups .*layer 4: 1 of 0"),
            (4, Sublayer.FFN, Option(0), "all of its channels .*layer 4: 0 of 0"),
            (0, Sublayer.FFN, Option(48, bits=4), "in 8 or 4 bits .*groups of 32.*bits=4"),
            (
                0,
                Sublayer.ATTENTION,
                Option(1, density=0.5),
                "not by cutting.*layer 0, attention: density=0.5.*lop sparsify",
            ),
        ],
    )
    def test_options_that_this_version_cannot_cut(
        self, checkpoint: Path, ranking: Ranking, layer: int, sublayer: Sublayer, option: Option, said: str
    ) -> None:
        model = load_model(checkpoint)
        architecture = Architecture.of({Site(3, Sublayer.FFN): Option(8), Site(layer, sublayer): option})
        with pytest.raises(PlanError, match=said):
            cut_model(model, architecture, ranking)
        assert {decoder_view(model).ffn_width(index) for index in range(4)} == {48}

    @pytest.mark.parametrize(("key", "said"), [("intermediate_size", "ffn"), ("num_key_value_heads", "attention")])
    def test_a_config_that_takes_a_sublayer_away(self, key: str, said: str, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path, "llama")
        config = json.loads((folder / "config.json").read_text())
        config |= {"per_layer_config": {"1": {key: 0}}, "allow_global_per_layer_attribute_access": True}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnsupportedModelError, match=f"takes the {said} of layer 1 away"):
            load_model(folder)

    def test_query_heads_that_groups_do_not_divide(self, tmp_path: Path) -> None:
        folder = save_tiny_checkpoint(tmp_path, "llama")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 3}))
        with pytest.raises(InputError, match=r"divide the query heads"):
            read_anatomy(folder)
