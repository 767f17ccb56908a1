"""`python -m benchmarks.second_order_reload RUNTIME PATH OUT`: what a written model says, in a process of its own.

RUNTIME is `transformers`, which loads the folder PATH by itself, or as `lop.load_pruned` does if its layers are cut
(`loaded`), and passes whole texts, nothing cut or cached; or `llama.cpp`, which runs the GGUF file PATH as it does by
default. On stdin is one JSON document:

- `texts`: token ids, text after text; what is said of them goes to OUT (`said`);
- `dense` and `conversations`, for transformers alone: the checkpoint that its KL is to, and on what, which is printed.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pruning.cutting.gguf.llama_runtime import LlamaRuntime
from pruning.data.conversations import Conversation, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NUM_WHOLE = 256
"""Positions of which all logits are kept; of the others, the most likely token."""

TRANSFORMERS, LLAMA_CPP = "transformers", "llama.cpp"

Texts = Sequence[Sequence[int]]
Said = dict[str, npt.NDArray[Any]]
"""`chosen` [N], the most likely next token after every token of the texts; `logits` [up to NUM_WHOLE, V], of the first
of these positions, and `margins` [N], by how much the chosen token's is above the next best."""


def said(logits: Iterable[npt.NDArray[np.float32]]) -> Said:
    """From the logits [T, V] of each text, in order."""
    chosen, margins, whole, room = [], [], [], NUM_WHOLE
    for found in logits:
        second, first = np.partition(found, -2, axis=1)[:, -2:].T
        chosen.append(found.argmax(axis=1))
        margins.append(first - second)
        if room:
            whole.append(found[:room].copy())
            room -= len(whole[-1])
    return {"chosen": np.concatenate(chosen), "margins": np.concatenate(margins), "logits": np.concatenate(whole)}


def loaded(folder: Path, ids: Sequence[int]) -> "PreTrainedModel":
    """The model in `folder`, its weights in few bits unpacked.

    A folder that is not cut is loaded as by anyone who has transformers and compressed-tensors: what unpacks is the
    hook of theirs, in a first pass, over the tokens `ids`. Layers of several sizes are built by lop.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from pruning.anatomy.layer_config import recorded_architecture
    from pruning.checkpoints.anatomy_reader import load_config
    from pruning.checkpoints.loading import load_pruned
    from pruning.checkpoints.unpacking import unpack_weights

    config = load_config(folder)
    model: PreTrainedModel
    if recorded_architecture(config) is None:
        is_text = config.get_text_config(decoder=True) is config
        auto: Any = AutoModelForCausalLM if is_text else AutoModelForImageTextToText
        model = auto.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
        with torch.no_grad():  # in inference mode weights would come out as tensors that cannot be widened
            model(input_ids=torch.tensor([ids]), use_cache=False)
        return model
    model = load_pruned(folder)
    if getattr(model.config, "quantization_config", None) is not None:
        unpack_weights(model)
    return model


def logits_of_model(model: "PreTrainedModel", texts: Texts) -> Iterator[npt.NDArray[np.float32]]:
    """[T, V] of each text, by PyTorch, in float32 whatever the weights are stored in."""
    import torch

    from pruning.forward.wide_passes import wide_passes

    with torch.inference_mode(), wide_passes(model):
        for ids in texts:
            yield model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().numpy()


def logits_of_file(file: Path, texts: Texts) -> Iterator[npt.NDArray[np.float32]]:
    """[T, V] of each text, by llama.cpp."""
    with LlamaRuntime(file, context_length=max(map(len, texts))) as runtime:
        for ids in texts:
            yield runtime.logits(ids)


def told(conversation: Conversation) -> dict[str, Any]:
    """A conversation as this process reads it."""
    turns = [{"question": x.question, "answer": x.answer} for x in conversation.turns]
    image = None if conversation.image is None else str(conversation.image.absolute())
    return {"id": conversation.id, "image": image, "turns": turns}


def _conversation(document: dict[str, Any]) -> Conversation:
    image = None if document["image"] is None else Path(document["image"])
    return Conversation(id=document["id"], image=image, turns=tuple(Turn(**turn) for turn in document["turns"]))


def main(runtime: str, path: Path, out: Path) -> None:
    """Print one JSON document."""
    asked = json.load(sys.stdin)
    if runtime == LLAMA_CPP:
        found, printed = said(logits_of_file(path, asked["texts"])), {}
    else:
        from pruning.checkpoints.loading import load_model, load_processor
        from pruning.data.batches import make_batches
        from pruning.measuring.evaluation import evaluate_model

        model, dense = loaded(path, asked["texts"][0]), Path(asked["dense"])
        batches = make_batches([_conversation(x) for x in asked["conversations"]], load_processor(dense))
        metrics = evaluate_model(model, batches, load_model(dense))
        printed = {"kl": metrics.kl, "agreement": metrics.agreement}
        found = said(logits_of_model(model, asked["texts"]))
    with out.open("wb") as file:
        np.savez(file, allow_pickle=False, **found)
    print(json.dumps(printed))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
