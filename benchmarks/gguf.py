"""Exported models in llama.cpp against PyTorch: the same next token, the same answers to pictures.

The reference is cut to 40% FFN sparsity by FLAP (widths that differ by layer, biases that stand in for what went), with
all of its attention, without some of its KV groups, and without some of its sub-layers too, and exported. For 500
questions of the validation
split that need no picture, the logits after the prompt are compared: PyTorch in f32, llama.cpp as it runs by default,
with keys and values in f16. Its tokenizer makes the prompts' tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from lop.workflows.measuring import measure_activations
from pruning.allocators.flap import allocate_flap
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_processor, load_pruned
from pruning.cutting.gguf.export import export_gguf
from pruning.cutting.gguf.llama_runtime import LlamaRuntime, LlamaVocabulary
from pruning.cutting.gguf.options import TensorType
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.data.conversations import load_conversations
from pruning.measuring.importance import ranking_of
from pruning.planning.ffn_spaces import ffn_widths
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from pruning.planning.scope import Scope
from pruning.planning.target import limits_for_sparsity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

REFERENCE = Path(__file__).parent.parent / "reference"
SPARSITY = 0.4
NUM_PROMPTS = 500
NUM_PICTURES = 100
CALIBRATION_CONVERSATIONS = 32

_TYPES = (TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0)

SKIPPED = (
    Site(0, Sublayer.ATTENTION),  # the layer that llama.cpp reads the head size from
    Site(5, Sublayer.ATTENTION),
    Site(6, Sublayer.FFN),
    Site(8, Sublayer.ATTENTION),
    Site(8, Sublayer.FFN),
)
_MODELS: tuple[tuple[str, bool, tuple[Site, ...]], ...] = (
    ("ffn", False, ()),
    ("ffn and KV groups", True, ()),
    ("ffn, KV groups and skips", True, SKIPPED),
)
"""A name, whether KV groups are cut, and the sub-layers that are skipped."""

Part = tuple[dict[str, Any], list[dict[str, Any]]]
"""What a part adds to a benchmark's summary, and its rows."""


def gguf_agreement(folder: Path, *, num_prompts: int = NUM_PROMPTS, num_pictures: int = NUM_PICTURES) -> Part:
    """`gguf_agreement` is the share of prompts with the same next token, in f16, of the worst of the models."""
    prompts = knowledge_prompts(num_prompts)
    rows, shares = [], []
    for name, cuts_groups, skipped in _MODELS:
        pruned = pruned_reference(folder / name.replace(" ", "-"), cuts_groups=cuts_groups, skipped=skipped)
        processor = load_processor(pruned)
        model = load_pruned(pruned, dtype=torch.float32)
        token_ids = [processor.tokenizer(prompt).input_ids for prompt in prompts]
        expected = last_logits(model, token_ids)
        for tensor_type in _TYPES:
            file = pruned.with_suffix(f".{tensor_type}.gguf")
            eyes = pruned.with_suffix(f".{tensor_type}.mmproj.gguf")
            export = export_gguf(pruned, file, tensor_type=tensor_type, mmproj=eyes)
            found = compare(file, prompts, token_ids, expected)
            if tensor_type is TensorType.F16:
                shares.append(found["agreement"])
                found |= compare_answers(model, processor, file, eyes, num_pictures)
            rows.append(
                {
                    "model": name,
                    "type": tensor_type.value,
                    "architecture": export.architecture,
                    "ffn_widths": export.sizes.ffn_widths,
                    "kv_heads": export.sizes.kv_heads,
                    "f16_fallbacks": export.num_f16_fallbacks,
                    "file_bytes": export.file_bytes,
                    **found,
                }
            )
    return {"gguf_agreement": min(shares)}, rows


def knowledge_prompts(count: int) -> list[str]:
    """The first `count` different questions of the validation split that need no picture, as the model is asked."""
    records = json.loads((REFERENCE / "data" / "validation.json").read_text())
    questions = dict.fromkeys(
        record["conversations"][2 * index]["value"].removeprefix("<image>\n")
        for record in records
        for index, kind in enumerate(record["kinds"])
        if kind == "fact"
    )
    if len(questions) < count:
        raise ValueError(f"the validation split has {len(questions)} questions without a picture, {count} are needed")
    template = load_processor(REFERENCE / "model").apply_chat_template
    return [
        template([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in list(questions)[:count]
    ]


def pruned_reference(out: Path, *, cuts_groups: bool, skipped: Sequence[Site] = ()) -> Path:
    """The reference at 40% FFN sparsity by FLAP; with `cuts_groups`, every other layer loses one of its KV groups. The
    sub-layers in `skipped` are gone as well."""
    source = REFERENCE / "model"
    anatomy = read_anatomy(source)
    conversations = load_conversations(REFERENCE / "data" / "calibration.json")[:CALIBRATION_CONVERSATIONS]
    statistics = measure_activations(source, conversations)
    space = ffn_widths(anatomy, round_to=8)
    limits = limits_for_sparsity(anatomy, space, SPARSITY, Scope.FFN, compensates=True)
    allocation = allocate_flap(anatomy, statistics, limits)
    assert allocation.ranking is not None
    ranking = replace(allocation.ranking, kv_groups=ranking_of(statistics, anatomy).kv_groups)
    groups = [layer.num_kv_groups - (cuts_groups and layer.index % 2) for layer in anatomy.layers]
    kept = anatomy.architecture(anatomy.ffn_widths(allocation.architecture), groups).options
    plan = make_plan(
        anatomy,
        Architecture.of(kept | dict.fromkeys(skipped, Option(0))),
        model_id="reference",
        target=PlanTarget(sparsity=SPARSITY, scope=Scope.FFN, round_to=8),
        ranking=PlanRanking(sha256=ranking.sha256),
        compensates=True,
        method="flap",
    )
    return prune_checkpoint(source, plan, ranking, out)


def last_logits(model: "PreTrainedModel", token_ids: list[list[int]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[N, V] logits after each prompt, by PyTorch."""
    with torch.inference_mode():
        return np.stack([model(input_ids=torch.tensor([ids])).logits[0, -1].numpy() for ids in token_ids])


def compare(
    file: Path, prompts: list[str], token_ids: list[list[int]], expected: np.ndarray[Any, np.dtype[np.float32]]
) -> dict[str, Any]:
    """How often llama.cpp has the same next token, how far its logits are, and how near its other choices were.

    `disagreement_margins` is, where tokens differ, by how much PyTorch preferred its own to llama.cpp's.
    """
    with LlamaVocabulary(file) as vocabulary:
        differently = sum(vocabulary.encode(text) != ids for text, ids in zip(prompts, token_ids, strict=True))
    with LlamaRuntime(file) as runtime:
        found = np.stack([runtime.logits(ids)[-1] for ids in token_ids])
    ours, theirs = expected.argmax(axis=1), found.argmax(axis=1)
    rows = np.flatnonzero(ours != theirs)
    return {
        "prompts": len(prompts),
        "encoded_differently": differently,
        "agreement": float((ours == theirs).mean()),
        "max_logit_difference": float(np.abs(found - expected).max()),
        "largest_logit": float(np.abs(expected).max()),
        "disagreement_margins": [float(expected[row, ours[row]] - expected[row, theirs[row]]) for row in rows],
    }


def compare_answers(
    model: "PreTrainedModel", processor: "ProcessorMixin", file: Path, eyes: Path, count: int
) -> dict[str, Any]:
    """Whole answers to questions about pictures, greedy, through mtmd; and how far the features of patches are.

    mtmd has one patch fewer than transformers, see `pruning.cutting.gguf.vision_tower`.
    """
    from benchmarks.mtmd import SeeingModel

    records = json.loads((REFERENCE / "data" / "validation.json").read_text())[:count]
    end = processor.tokenizer.eos_token_id
    same, worst = 0, 0.0
    with SeeingModel(file, eyes) as seeing:
        for record in records:
            picture = Image.open(REFERENCE / "data" / record["image"]).convert("RGB")
            pixels = np.asarray(picture)
            question = record["conversations"][0]["value"].removeprefix("<image>\n")
            inputs = processor(images=picture, text=f"<|user|><image>\n{question}<|assistant|>", return_tensors="pt")
            with torch.inference_mode():
                ids = model.generate(**inputs, do_sample=False, max_new_tokens=24)[0, inputs.input_ids.shape[1] :]
                features = model.model.get_image_features(inputs.pixel_values).pooler_output[0].numpy()
            expected = [token for token in ids.tolist() if token != end]
            same += seeing.answer("<|user|>", pixels, f"\n{question}<|assistant|>") == expected
            worst = max(worst, float(np.abs(seeing.features(pixels)[:-1] - features[1:]).max()))
    return {"picture_questions": count, "same_answers": same / count, "max_feature_difference": worst}


def main() -> None:
    """Print the part's figures and rows as JSON."""
    with TemporaryDirectory(prefix="lop-bench-gguf.") as folder:
        figures, rows = gguf_agreement(Path(folder))
    print(json.dumps({**figures, "rows": rows}, indent=1))  # noqa: T201


if __name__ == "__main__":
    main()
