"""Whether a checkpoint's output head is its input embeddings, by the config and by what the files hold.

A config that ties the two is not always right: InternVL's says so by default, of models that have a head of their own.
transformers ties them unless both are stored and differ, and takes whichever is stored
(`PreTrainedModel.tie_weights`). Here it is the same.
"""

from collections.abc import Iterable, Mapping
from itertools import product, zip_longest
from typing import TYPE_CHECKING

import numpy as np

from pruning.anatomy.tensor_roles import EMBEDDINGS, OUTPUT_HEAD, is_computed, outer_tensor
from pruning.checkpoints.blocks import whole_blocks
from pruning.checkpoints.headers import StoredTensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def needed_tensors(config: "PreTrainedConfig", stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors that a model is loaded from: without buffers that it computes, and without a head that the config
    ties and that equals the embeddings stored beside it.

    Raises CheckpointError if their bytes, which are compared then, cannot be read.
    """
    copies = {
        head for embeddings, head in _tied_pairs(config, stored) if _equal_bytes(stored[embeddings], stored[head])
    }
    return {name: tensor for name, tensor in stored.items() if name not in copies and not is_computed(name)}


def is_tied_wrongly(config: "PreTrainedConfig", needed: Iterable[str]) -> bool:
    """Whether the config ties a head to embeddings that differ, by the names of the tensors that are needed."""
    return bool(_tied_pairs(config, needed))


def _tied_pairs(config: "PreTrainedConfig", names: Iterable[str]) -> list[tuple[str, str]]:
    """Embeddings and head of a config that ties them, if both are among `names`."""
    if not getattr(config, "tie_word_embeddings", False):
        return []
    outer = [(name, outer_tensor(name)) for name in names]
    embeddings, heads = ([name for name, kind in outer if kind == wanted] for wanted in (EMBEDDINGS, OUTPUT_HEAD))
    return list(product(embeddings, heads))


def _equal_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors are the same; read until they differ."""
    if first.header[1:] != second.header[1:]:
        return False
    blocks = zip_longest(whole_blocks(first), whole_blocks(second))
    return all(np.array_equal(ours, others) for ours, others in blocks)
