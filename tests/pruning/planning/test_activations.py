"""The stated bound on activations, worked out by hand and against what a forward pass really holds."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Site, Sublayer
from pruning.anatomy.decoder_layer import TensorSpec
from pruning.checkpoints.anatomy_reader import anatomy_of
from pruning.planning.activations import activation_bytes, vision_values
from pruning.planning.cost import kv_cache_bytes
from pruning.planning.workload import Workload
from tests.pruning.made_up import made_up_anatomy
from tests.tiny_models import tiny_model

# D = 10, 4 heads of 8 in 2 groups, vocabulary 100, widest FFN 64, float32.
TOKEN = 2 * 10 + 4 * 32 + 3 * 64


def test_a_long_prompt() -> None:
    anatomy = made_up_anatomy([32, 64])
    assert activation_bytes(anatomy, Workload(batch=3, prompt_tokens=7, output_tokens=2)) == (
        4 * 3 * 7 * TOKEN + 4 * 3 * 100
    )


def test_a_long_answer_to_a_short_prompt() -> None:
    anatomy = made_up_anatomy([32, 64])
    # Keys and values of 1 + 99 positions in 2 groups, and repeated for 4 heads.
    assert activation_bytes(anatomy, Workload(batch=3, prompt_tokens=1, output_tokens=99)) == (
        4 * 3 * (TOKEN + 2 * 100 * (2 + 4) * 8) + 4 * 3 * 100
    )


def test_half_precision_halves_all_but_the_logits() -> None:
    anatomy, workload = made_up_anatomy([32, 64]), Workload(batch=1, prompt_tokens=7, output_tokens=1)
    assert activation_bytes(replace(anatomy, dtype="BF16"), workload) == 2 * 7 * TOKEN + 400


def test_an_image_counts_where_it_is_more_than_the_prompt() -> None:
    vision = (
        TensorSpec("vision_tower.embeddings.position_embedding.weight", (50, 16), "F32"),
        TensorSpec("vision_tower.encoder.layers.0.mlp.fc1.weight", (64, 16), "F32"),
        TensorSpec("vision_tower.encoder.layers.0.mlp.fc1.bias", (64,), "F32"),
        TensorSpec("model.layers.0.mlp.down_proj.weight", (10, 9999), "F32", Site(0, Sublayer.FFN), 1),
    )
    anatomy = replace(made_up_anatomy([32, 64]), tensors=vision)
    assert vision_values(anatomy) == 50 * (6 * 16 + 2 * 64)
    assert activation_bytes(anatomy, Workload(batch=2, prompt_tokens=1, output_tokens=1)) == (
        4 * 2 * 50 * (6 * 16 + 2 * 64) + 4 * 2 * 100
    )


@pytest.mark.parametrize("workload", [Workload(), Workload(batch=1, prompt_tokens=1, output_tokens=0)])
def test_the_reference_kind_of_model_has_a_vision_tower(anatomy: ModelAnatomy, workload: Workload) -> None:
    assert vision_values(anatomy) > 0
    assert activation_bytes(anatomy, workload) >= 4 * vision_values(anatomy) * workload.batch


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made inside, as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@pytest.mark.parametrize("name", ["llava-llama", "llava-mistral", "llava-qwen3"])
def test_a_prompt_with_images_holds_no_more_and_nearly_as_much(name: str) -> None:
    model = tiny_model(name)
    anatomy, batch, prompt = anatomy_of(model), 3, 400
    ids = torch.full((batch, prompt), 7)
    ids[:, 1:6] = model.config.image_token_id  # four patches and the class token
    ids[:, 5] = 7
    pixels = torch.zeros(batch, 3, 32, 32)
    with torch.inference_mode(), LiveBytes() as bytes_:
        model(input_ids=ids, pixel_values=pixels, use_cache=True, logits_to_keep=1)
    workload = Workload(batch=batch, prompt_tokens=prompt, output_tokens=0)
    held = bytes_.peak - kv_cache_bytes(anatomy, workload)
    assert 0.5 * activation_bytes(anatomy, workload) < held <= activation_bytes(anatomy, workload)


@torch.inference_mode()
def test_a_long_cache_is_copied_and_repeated_one_layer_at_a_time() -> None:
    model = tiny_model("llava-llama")
    anatomy, batch, cached = anatomy_of(model), 3, 999
    with LiveBytes() as bytes_:
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        for layer in anatomy.layers:
            shape = (batch, layer.num_kv_groups, cached, layer.head_dim)
            cache.update(torch.zeros(shape), torch.zeros(shape), layer.index)
        model(input_ids=torch.full((batch, 1), 7), past_key_values=cache, use_cache=True, logits_to_keep=1)
    workload = Workload(batch=batch, prompt_tokens=1, output_tokens=cached)
    held = bytes_.peak - kv_cache_bytes(anatomy, workload)
    one_layer = kv_cache_bytes(anatomy, workload) / anatomy.num_layers
    assert 0.9 * one_layer < held <= activation_bytes(anatomy, workload)
