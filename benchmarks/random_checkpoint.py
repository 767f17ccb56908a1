"""Checkpoints with a real model's config, tensors and shards and random weights, written with bounded memory; and
random rankings of them."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.tensor_roles import TensorHeader
from pruning.checkpoints.headers import INDEX_NAME
from pruning.checkpoints.safetensors_layout import file_layout, plan_shards, tensor_bytes
from pruning.cutting.streaming.companions import copy_companions
from pruning.planning.ranking import Ranking

BLOCK_BYTES = 16 * 2**20
_POOL_VALUES = 32 * 2**20

# What modules are called in the hub's LLaVA checkpoints, which transformers renames when it loads and saves them.
_HUB_PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "lm_head.": "language_model.lm_head.",
}


@dataclass(frozen=True, slots=True)
class LlavaShape:
    """A LLaVA of these sizes with a CLIP ViT-L/14-336 vision tower; by default LLaVA-1.5-7B."""

    num_layers: int = 32
    hidden_size: int = 4096
    ffn_width: int = 11008
    num_heads: int = 32
    vocab_size: int = 32064
    num_vision_layers: int = 24

    def config(self) -> LlavaConfig:
        vision = CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=self.num_vision_layers,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
            projection_dim=768,
        )
        text = LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.ffn_width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            vocab_size=self.vocab_size,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
        )
        return LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=min(32000, self.vocab_size - 1),
            image_seq_length=576,
            dtype="bfloat16",
            architectures=["LlavaForConditionalGeneration"],
        )

    def tensors(self) -> list[TensorHeader]:
        """Every tensor as the hub's checkpoints name it, in bfloat16."""
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(self.config())
        return [(_hub_name(name), tuple(tensor.shape), "BF16") for name, tensor in model.named_parameters()]


def write_random_llava(
    folder: Path, shape: LlavaShape, *, companions: Path, max_shard_size: int, seed: int = 0
) -> Path:
    """Write the checkpoint to the new folder `folder`, with tokenizer and processor of the checkpoint `companions`."""
    folder.mkdir(parents=True)
    headers = {tensor[0]: tensor for tensor in shape.tensors()}
    shards = plan_shards(list(headers.values()), max_shard_size=max_shard_size)
    pool = _random_bfloat16(seed)
    for file_name, names in shards.filename_to_tensors.items():
        layout = file_layout([headers[name] for name in names])
        with (folder / file_name).open("wb") as file:
            file.write(layout.head)
            for place, (_, dimensions, dtype) in enumerate(layout.tensors):
                for block in _random_blocks(pool, tensor_bytes(dimensions, dtype), seed + place):
                    file.write(block)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX_NAME).write_text(json.dumps(index))
    copy_companions(companions, folder)
    shape.config().save_pretrained(folder)
    return folder


def random_ranking(anatomy: ModelAnatomy, *, seed: int = 0) -> Ranking:
    """Channels and KV groups in random order: what is kept is scattered, the worst case for a disk."""
    rng = np.random.default_rng(seed)
    return Ranking.from_scores(
        anatomy,
        [rng.random(layer.ffn_width) for layer in anatomy.layers],
        group_scores=[rng.random(layer.num_kv_groups) for layer in anatomy.layers],
    )


def remove(*folders: Path) -> None:
    """Remove what a benchmark has written, if it is there."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _hub_name(name: str) -> str:
    prefix = next(p for p in _HUB_PREFIXES if name.startswith(p))
    return _HUB_PREFIXES[prefix] + name.removeprefix(prefix)


def _random_bfloat16(seed: int) -> NDArray[np.uint8]:
    """Normal values of the size that trained weights have, as bytes: a bfloat16 is the upper half of a float32."""
    values = np.random.default_rng(seed).standard_normal(_POOL_VALUES, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def _random_blocks(pool: NDArray[np.uint8], num_bytes: int, seed: int) -> Iterator[memoryview]:
    """Slices of the pool, from a different place for each tensor and block."""
    rng = np.random.default_rng(seed)
    while num_bytes:
        count = min(BLOCK_BYTES, num_bytes)
        start = 2 * int(rng.integers((len(pool) - count) // 2 + 1))
        yield pool[start : start + count].data
        num_bytes -= count
