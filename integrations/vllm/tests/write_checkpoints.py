"""Pruned checkpoints, and what `lop.load_pruned` answers with them: `python -m write_checkpoints FOLDER`.

Runs in lop-service's own environment; test_tokens.py then asks vLLM the same, in an environment of its own.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, Gemma3Processor, PreTrainedModel
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

import lop
from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Option, Site, Sublayer
from pruning.checkpoints.anatomy_reader import read_anatomy
from pruning.checkpoints.loading import load_processor
from pruning.cutting.prune_checkpoint import prune_checkpoint
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget
from pruning.planning.ranking import Ranking
from tests.tiny_models.hub_folders import HUB_FOLDERS, save_hub_folder
from tests.tiny_models.processor import tiny_processor, tiny_tokenizer
from tests.tiny_models.wide import wide_model

NEW_TOKENS = 12
FEW_BITS = "few-bits"
NUM_PROMPTS, PROMPT_TOKENS = 4, 11
CLEAR_GAP = 0.1
"""Of the standard deviation of logits, between first choice and second: more than rounding to bfloat16 moves."""

TEXT = ("llama", "mistral", "qwen2", "qwen3", "phi3", "phi", "gemma2", "gemma3-text")
NOT_THERE = ("SmolVLM", "SmolVLM2")
"""transformers 5.19, which vLLM 0.32 has, cannot tell vLLM how many tokens a picture of theirs takes."""

SEES = ("llava-llama", "gemma3", *(name for name in HUB_FOLDERS if name not in (*NOT_THERE, "Gemma-3")))
REFUSED = {"Qwen3-VL": "several decoder layers"}
"""Pictures that the plugin refuses, and what it says."""


def _mixed(anatomy: ModelAnatomy) -> Architecture:
    """Other widths in each layer, a KV group less in the first, no FFN in the second, no attention in the third."""
    groups = [x.num_kv_groups for x in anatomy.layers]
    return anatomy.architecture([16, 0, 96, 40], [max(1, groups[0] - 1), groups[1], 0, groups[3]])


def _halved(anatomy: ModelAnatomy) -> Architecture:
    """What two devices share: even widths, and all KV groups."""
    return anatomy.architecture([16, 0, 96, 40], [x.num_kv_groups for x in anatomy.layers])


def _from_the_second(anatomy: ModelAnatomy) -> Architecture:
    """The first layer has no attention, the second is gone."""
    return anatomy.architecture([16, 0, 96, 40], [0, 0, *(x.num_kv_groups for x in anatomy.layers[2:])])


def _few_bits(anatomy: ModelAnatomy) -> Architecture:
    """Cut layers whose weights are in 4 bits beside layers of plain numbers, and what `_mixed` has besides."""
    units = _mixed(anatomy).options
    packed = {
        Site(0, Sublayer.ATTENTION): Option(anatomy.layers[0].num_kv_groups, 4),
        Site(0, Sublayer.FFN): Option(32, 4),
        Site(1, Sublayer.ATTENTION): Option(1),
        Site(2, Sublayer.FFN): Option(64, 4),
    }
    return Architecture.of({**units, **packed})


ARCHITECTURES: Mapping[str, Callable[[ModelAnatomy], Architecture]] = {
    "mixed": _mixed,
    "halved": _halved,
    "from-the-second": _from_the_second,
    FEW_BITS: _few_bits,
}
"""All of them for Llama, the first for every family."""


_GEMMA_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|user|>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endfor %}"
)
"""Its processor puts a picture where the token is that begins one, here `<|user|>`."""


def write_family(folder: Path, name: str) -> list[dict[str, Any]]:
    """The dense and the pruned checkpoints of a family in `folder`, and a case for each pruned one."""
    dense = folder / "dense"
    if name in HUB_FOLDERS:
        save_hub_folder(dense, name, build=wide_model)
    else:
        wide_model(name).save_pretrained(dense)
        _save_processor(dense, name)
    anatomy = read_anatomy(dense)
    ranking = _ranking(anatomy)
    kinds = list(ARCHITECTURES) if name == "llama" else ["mixed"]
    return [_case(dense, folder / kind, anatomy, ranking, kind, name) for kind in kinds]


def _save_processor(folder: Path, name: str) -> None:
    if name == "gemma3":
        tokenizer = AutoTokenizer.from_pretrained(_gemma_tokenizer(folder))
        images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
        Gemma3Processor(images, tokenizer, chat_template=_GEMMA_TEMPLATE, image_seq_length=4).save_pretrained(folder)
    elif name in SEES:
        tiny_processor().save_pretrained(folder)
    else:
        tiny_tokenizer().save_pretrained(folder)


def _gemma_tokenizer(folder: Path) -> Path:
    tokenizer = tiny_tokenizer()
    names = {"image_token": "<image>", "boi_token": "<|user|>", "eoi_token": "<|assistant|>"}
    tokenizer.init_kwargs["extra_special_tokens"] = names
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"extra_special_tokens": names}))
    return folder


def _ranking(anatomy: ModelAnatomy) -> Ranking:
    rng = np.random.default_rng(0)
    widths = [x.ffn_width for x in anatomy.layers]
    return Ranking.from_scores(
        anatomy,
        [rng.random(width) for width in widths],
        group_scores=[rng.random(x.num_kv_groups) for x in anatomy.layers],
        means=[rng.normal(0, 0.1, width) for width in widths],
    )


def _case(dense: Path, out: Path, anatomy: ModelAnatomy, ranking: Ranking, kind: str, name: str) -> dict[str, Any]:
    plan = make_plan(
        anatomy,
        ARCHITECTURES[kind](anatomy),
        model_id=name,
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
        compensates=True,  # biases that no config tells of: vLLM has to find them in the weight files
    )
    prune_checkpoint(dense, plan, ranking, out)
    model = lop.load_pruned(out, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    rng = np.random.default_rng(0)
    is_rounded = kind == FEW_BITS  # vLLM's kernels for few bits on CPUs compute in bfloat16
    prompts = _clear_prompts(model, rng) if is_rounded else rng.integers(7, 250, (NUM_PROMPTS, PROMPT_TOKENS)).tolist()
    case: dict[str, Any] = {
        "name": f"{name}, {kind}",
        "folder": str(out),
        "dtype": "bfloat16" if is_rounded else "float32",
        "sees": name in SEES,
        "refused": REFUSED.get(name),
        "prompts": prompts,
        "tokens": [_greedy(model, {"input_ids": torch.tensor([prompt])}) for prompt in prompts],
    }
    if name in SEES:
        case |= _picture_case(model, out, rng)
    return case


@torch.inference_mode()
def _clear_prompts(model: PreTrainedModel, rng: np.random.Generator) -> list[list[int]]:
    """Prompts whose greedy continuation has no step at which two tokens are nearly as likely."""
    found: list[list[int]] = []
    while len(found) < NUM_PROMPTS:
        prompt = rng.integers(7, 250, PROMPT_TOKENS).tolist()
        settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0, "output_logits": True}
        said = model.generate(torch.tensor([prompt]), return_dict_in_generate=True, **settings)
        logits = torch.cat(said.logits)
        first, second = logits.topk(2).values.T
        if bool(((first - second) > CLEAR_GAP * logits.std(dim=1)).all()):
            found.append(prompt)
    return found


def _picture_case(model: PreTrainedModel, folder: Path, rng: np.random.Generator) -> dict[str, Any]:
    path = folder.parent / "picture.png"
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    processor = load_processor(folder)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}
    prompt = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=[Image.open(path)], return_tensors="pt")
    return {"picture": str(path), "picture_prompt": prompt, "picture_tokens": _greedy(model, dict(inputs))}


@torch.inference_mode()
def _greedy(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> list[int]:
    length = inputs["input_ids"].shape[1]
    found = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    tokens: list[int] = found[0, length:].tolist()
    return tokens


def main(folder: Path, families: list[str]) -> None:
    cases = []
    for name in families or (*TEXT, *SEES):
        cases += write_family(folder / name.replace(" ", "-"), name)
        print(name, file=sys.stderr)  # noqa: T201
    (folder / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
