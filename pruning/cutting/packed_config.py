"""What config.json says of weights in few bits: compressed-tensors' groups, one for each number of bits."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.families import FAMILIES
from pruning.anatomy.packed_weights import GROUP
from pruning.missing_packages import needing

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def config_of_bits(source: Path, anatomy: ModelAnatomy, architecture: Architecture) -> dict[str, Any] | None:
    """The `quantization_config` of what `architecture` makes of the checkpoint in `source`; None where no weight is in
    fewer bits. Raises MissingExtraError without compressed-tensors."""
    if all(option.bits is None for _, option in architecture.items):
        return None
    family = FAMILIES[anatomy.text_model_type]
    targets: dict[tuple[int, int], list[str]] = {}
    for sublayer in Sublayer:
        layers: dict[int, list[int]] = {}
        for site, option in architecture.items:
            if site.sublayer is sublayer and option.bits is not None:
                layers.setdefault(option.bits, []).append(site.layer)
        for bits, own in layers.items():
            targets.setdefault((bits, GROUP), []).append(layer_pattern(own, family.linears(sublayer)))
    import torch

    from pruning.forward.layer_source import CheckpointLayers

    model = CheckpointLayers(source, torch.device("cpu")).model
    everything = [x.removeprefix("re:") for own in targets.values() for x in own]
    return quantization_document(targets, names_elsewhere(model, everything))


def quantization_document(targets: Mapping[tuple[int, int], Sequence[str]], ignored: Sequence[str]) -> dict[str, Any]:
    """The `quantization_config`: patterns of linear layers by their bits and group size, and what is left alone."""
    with needing("quantise"):
        from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    groups = {}
    for number, ((bits, group), own) in enumerate(sorted(targets.items())):
        weights = QuantizationArgs(num_bits=bits, type="int", strategy="group", group_size=group, symmetric=True)
        groups[f"group_{number}"] = QuantizationScheme(targets=list(own), weights=weights)
    config = QuantizationConfig(
        config_groups=groups, format="pack-quantized", quantization_status="compressed", ignore=list(ignored)
    )
    document: dict[str, Any] = json.loads(config.model_dump_json())
    return document


def layer_pattern(layers: Iterable[int], inside: Iterable[str]) -> str:
    """What matches the linear layers `inside` of those decoder layers."""
    numbers, names = "|".join(map(str, layers)), "|".join(map(re.escape, inside))
    return rf"re:.*\blayers\.({numbers})\.({names})$"


def names_elsewhere(model: "PreTrainedModel", patterns: Sequence[str]) -> list[str]:
    """What to leave alone although names match: the head, and parts of the model besides its decoder."""
    from torch import nn

    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    wanted = re.compile("|".join(patterns))
    found = {
        name.removeprefix("model.").split(".")[0]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(f"{decoder}.") and wanted.match(name)
    }
    return ["lm_head", *(f"re:.*{re.escape(part)}.*" for part in sorted(found))]
