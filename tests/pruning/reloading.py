"""`python -m tests.pruning.reloading FAMILY=FOLDER ...`: load pruned checkpoints in this process; JSON about each.

It knows nothing but the folders: what it finds is compared with the models that they were made from.
"""

import hashlib
import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers import AutoConfig, DynamicCache, PreTrainedModel

import lop
from tests.pruning.cut_models import inputs_of, logits_of, with_tokens

NEW_TOKENS = 5


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over names, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def seen(model: PreTrainedModel, family: str) -> dict[str, str]:
    """Digests of a model's weights and of its logits on all that it is shown."""
    found = {name: digest({"logits": logits_of(model, inputs)}) for name, inputs in inputs_of(family).items()}
    return found | {"weights": digest(model.state_dict())}


def cache_error(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
    """The largest difference between logits while generating with a KV cache and those of one pass without."""
    generated = model.generate(
        **inputs,
        do_sample=False,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        past_key_values=DynamicCache(config=model.config),
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = generated.sequences[:, inputs["input_ids"].shape[1] :]
    assert tokens.shape[1] == NEW_TOKENS
    assert isinstance(generated.past_key_values, DynamicCache)
    whole = logits_of(model, with_tokens(inputs, tokens))[:, -NEW_TOKENS - 1 : -1]
    return float((whole - torch.stack(generated.logits, dim=1)).abs().max())


def recorded(folder: str) -> list[list[int]]:
    """[L] FFN width and KV heads of each layer, as transformers' own config says."""
    text = AutoConfig.from_pretrained(folder).get_text_config(decoder=True)
    layers = [text.per_layer_config[i] for i in range(text.num_hidden_layers)]
    heads = [layer.num_attention_heads for layer in layers]
    groups = [getattr(layer, "num_key_value_heads", None) or h for layer, h in zip(layers, heads, strict=True)]
    return [[layer.intermediate_size for layer in layers], groups, heads]


def report(family: str, folder: str) -> dict[str, Any]:
    """All of it."""
    model = lop.load_pruned(folder)
    return {
        "class": type(model).__name__,
        "recorded": recorded(folder),
        "seen": seen(model, family),
        "cache_error": {name: cache_error(model, inputs) for name, inputs in inputs_of(family).items()},
    }


@contextmanager
def _printed() -> Iterator[None]:
    """Errors on stderr, on their way up."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        raise


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    reports: dict[str, Any] = {}
    for argument in arguments:
        family, _, folder = argument.partition("=")
        reports[argument] = {"error": "it did not load: see stderr"}
        with suppress(Exception), _printed():
            reports[argument] = report(family, folder)
    sys.stdout.write(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1:])
