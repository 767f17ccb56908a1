"""Tiny models and conversations on disk."""

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Hashable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pruning.anatomy.decoder_layer import architecture_of
from pruning.checkpoints.anatomy_reader import layer_shapes
from pruning.checkpoints.resizing import resize_model
from tests.tiny_models.builders import IMAGE_FAMILIES, tiny_model
from tests.tiny_models.processor import TEXT_TEMPLATE, tiny_processor, tiny_tokenizer


def save_tiny_checkpoint(
    folder: Path, name: str = "llava-llama", *, seed: int = 0, shard: str = "5GB", ffn_width: int | None = None
) -> Path:
    """A model in `folder` with its processor; a language model has a tokenizer alone."""

    def save(folder: Path) -> None:
        model = tiny_model(name, seed=seed)
        if ffn_width is not None:
            resize_model(model, architecture_of(layer_shapes(model.config), [ffn_width] * 4))
            for parameter in model.get_decoder().layers.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
            model.config.get_text_config().intermediate_size = ffn_width
        model.save_pretrained(folder, max_shard_size=shard)
        if name in IMAGE_FAMILIES:
            tiny_processor().save_pretrained(folder)
        else:
            tokenizer = tiny_tokenizer()
            tokenizer.chat_template = TEXT_TEMPLATE
            tokenizer.save_pretrained(folder)

    return saved_once(folder, ("tiny", name, seed, shard, ffn_width), save)


def saved_once(folder: Path, key: Hashable, save: Callable[[Path], None]) -> Path:
    """`folder` as `save` fills it, and torch's random numbers go on as after it; called again with the same `key`, a
    copy of what it saved in this process. To make a model and to save it takes a tenth of a second, to copy it
    milliseconds."""
    if folder.exists() and any(folder.iterdir()):  # what is there already has a say in what comes of it
        save(folder)
        return folder
    if key not in _saved():
        made = _store() / str(len(_saved()))
        save(made)
        _saved()[key] = made, torch.get_rng_state()
    made, state = _saved()[key]
    torch.set_rng_state(state)
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return folder


@cache
def _saved() -> dict[Hashable, tuple[Path, torch.Tensor]]:
    """Folders by their keys, and the state of torch's generator after each was made."""
    return {}


@cache
def _store() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lop-tiny-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_conversations(folder: Path, count: int = 6, *, turns: int = 2, seed: int = 0) -> Path:
    """A LLaVA-format file with `count` random pictures, the last conversation text-only; returns its path."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "seven", "three", "seven three"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        messages = []
        for turn in range(turns):
            has_image = turn == 0 and index < count - 1
            messages.append({"from": "human", "value": ("<image>\n" if has_image else "") + f"what is it {turn}?"})
            messages.append({"from": "gpt", "value": str(rng.choice(words))})
        item: dict[str, object] = {"id": f"c{index}", "conversations": messages}
        if index < count - 1:
            item["image"] = f"images/{index}.png"
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        items.append(item)
    path = folder / "conversations.json"
    path.write_text(json.dumps(items))
    return path
