"""The config.json of a pruned checkpoint: the dense one's own, and what each layer keeps."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture
from pruning.anatomy.families import family_of
from pruning.anatomy.layer_config import layer_overrides, recorded_architecture
from pruning.checkpoints.anatomy_reader import load_config, read_anatomy
from pruning.checkpoints.output_head import is_tied_wrongly
from pruning.cutting.packed_config import config_of_bits
from pruning.cutting.streaming.companions import CODE_KEY
from pruning.errors import CheckpointError
from pruning.planning.plan import PruningPlan

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


RECOVERY_KEY = "lop_recovery"
"""In configs: the recovery steps of a plan, where data made its weights. transformers keeps it as it is."""

SPARSITY_KEY = "lop_sparsity"
"""In configs: how single weights were zeroed, in short; transformers keeps it."""

NOTE_KEY = "lop_note"
"""In configs whose layers differ: what to do where a runtime stops at the first shape that does. For people."""

NOTE = (
    "Layers differ in size, see per_layer_config. transformers: lop.load_pruned, or lop.register_transformers() "
    "first. vLLM: install lop-vllm beside it. llama.cpp: lop export gguf. The model card, README.md, says more."
)

SKIP_NOTE = (
    "The files have no weights for what is under skip: plain from_pretrained makes what is skipped anew, of random "
    "weights, and only warns."
)
"""Beside `NOTE` where a plan skips: no shape differs there that a runtime would stop at."""


def write_config(
    source: Path, plan: PruningPlan, draft: Path, anatomy: ModelAnatomy | None = None
) -> "PreTrainedConfig":
    """Write `draft`/config.json: the source's own plus `per_layer_config`, so nothing that transformers does not know
    is lost, but the names of code that is not taken along. Returns it as it is read again.

    Some hub configs are flat, with the language model's fields beside the vision tower's; what transformers makes of
    them is written then, since `per_layer_config` belongs to the language model. What names code of the model's own
    (`auto_map`) is left out, as that code is; so is how single weights were zeroed, which says a share and a pattern of
    other matrices than those that are cut; and a head that is not the embeddings is not said to be tied to them.
    `anatomy` is of the source, read from its headers if it is not given.
    """
    anatomy = anatomy or read_anatomy(source)
    config, document = _own_config(source, (tensor.name for tensor in anatomy.tensors))
    document.pop(SPARSITY_KEY, None)
    text = config.get_text_config(decoder=True)
    place = document.get("text_config", document)
    planned = plan.architecture(anatomy)
    architecture = anatomy.sizes(planned)
    overrides = layer_overrides(architecture, anatomy, family_of(text))
    if overrides:
        # transformers takes head_dim from the number of heads otherwise, which is not the same in every layer.
        place["head_dim"] = anatomy.layers[0].head_dim
        place["per_layer_config"] = {str(layer): changed for layer, changed in overrides.items()}
        place["allow_global_per_layer_attribute_access"] = True
        document[NOTE_KEY] = f"{NOTE} {SKIP_NOTE}" if skips(architecture) else NOTE
    if (packed := config_of_bits(source, anatomy, planned)) is not None:
        document["quantization_config"] = packed
    if plan.reconstructs or plan.rounds:
        document[RECOVERY_KEY] = [step.model_dump(mode="json") for step in plan.recovery]
    (draft / "config.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    written = load_config(draft)
    if (recorded_architecture(written) or Architecture()) != architecture:
        raise CheckpointError("the config must record the plan's sizes", values=f"{source / 'config.json'}")
    return written


def skips(architecture: Architecture) -> bool:
    """Whether a sub-layer is left out."""
    return any(option.units == 0 for _, option in architecture.items)


def write_rewritten_config(source: Path, draft: Path, names: Iterable[str], added: dict[str, Any]) -> None:
    """Write `draft`/config.json: the source's own, of which every size stays, and what is `added`.

    `names` are those of the tensors that its model is loaded from.
    """
    _, document = _own_config(source, names)
    (draft / "config.json").write_text(json.dumps(document | added, indent=2) + "\n", encoding="utf-8")
    load_config(draft)


def _own_config(source: Path, names: Iterable[str]) -> "tuple[PreTrainedConfig, dict[str, Any]]":
    """The source's config, and what an output's is made of: see `write_config`."""
    document: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config = load_config(source)
    if config.get_text_config(decoder=True) is not config and "text_config" not in document:
        document = config.to_dict()
    for part in (document, *document.values()):
        if isinstance(part, dict):
            part.pop(CODE_KEY, None)
    if is_tied_wrongly(config, names):
        for section in (document, document.get("text_config", document)):
            section["tie_word_embeddings"] = False  # some configs of transformers take it from the one, some the other
    return config, document
