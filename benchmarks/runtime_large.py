"""The checkpoint of 1B's shape whose speed is measured: Llama-3.2-1B's layers, and its embeddings, which are the head.

Pruning leaves embeddings and head alone. They are a fifth of the dense model, so half of the decoder is not half of
what a token reads: at most 1.65 times as many tokens a second where reading weights is what takes the time.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.runtime_models import prune
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from tests.tiny_models.processor import tiny_tokenizer

VOCABULARY = 128_256
SIZES: Mapping[str, int] = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def write_large(folder: Path, num_layers: int, vocabulary: int) -> dict[str, Any]:
    """`dense` and `pruned` in bfloat16, anew, with random weights. The tokenizer knows few of the tokens."""
    shutil.rmtree(folder, ignore_errors=True)
    dense = folder / "dense"
    config = LlamaConfig(
        **SIZES,
        num_hidden_layers=num_layers,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(dense)
    tiny_tokenizer().save_pretrained(dense)
    return prune(dense, folder / "pruned", "large", half)


def half(anatomy: ModelAnatomy) -> Architecture:
    """Half of the decoder: of every layer, in turns a quarter more and a quarter less."""
    shares = [0.25 if layer % 2 else 0.75 for layer in range(len(anatomy.layers))]
    widths = [int(x.ffn_width * share) for x, share in zip(anatomy.layers, shares, strict=True)]
    return anatomy.architecture(widths, [int(x.num_kv_groups * s) for x, s in zip(anatomy.layers, shares, strict=True)])
