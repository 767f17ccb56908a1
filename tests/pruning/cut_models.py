"""Plans for tiny models, the dense twin of a cut model, and what models are shown to compare them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from pruning.anatomy.anatomy import ModelAnatomy
from pruning.anatomy.architecture import Architecture, Sublayer
from pruning.anatomy.decoder_view import decoder_view
from pruning.data.batches import Batch
from pruning.planning.make_plan import make_plan
from pruning.planning.plan import PlanRanking, PlanTarget, PruningPlan
from pruning.planning.ranking import Ranking
from tests.tiny_models import IMAGE_FAMILIES, IMAGE_TOKEN, with_pictures

WIDTHS = [16, 8, 48, 40]


def kept_groups(anatomy: ModelAnatomy) -> list[int]:
    """A different number from layer to layer, where there are groups to choose from: the layer whose FFN stays dense
    loses groups, and one that loses channels keeps all its groups."""
    dense = [x.num_kv_groups for x in anatomy.layers]
    kept = [dense[0] - 1, dense[1], dense[2] // 2, (dense[3] + 1) // 2]
    return [max(1, groups) for groups in kept]


def random_ranking(anatomy: ModelAnatomy) -> Ranking:
    rng = np.random.default_rng(0)
    ffn = [rng.random(x.ffn_width) for x in anatomy.layers]
    return Ranking.from_scores(anatomy, ffn, group_scores=[rng.random(x.num_kv_groups) for x in anatomy.layers])


def plan_for(
    anatomy: ModelAnatomy, ranking: Ranking, widths: Sequence[int], kv_groups: Sequence[int] | None = None
) -> PruningPlan:
    return make_plan(
        anatomy,
        anatomy.architecture(widths, kv_groups),
        model_id="tiny",
        target=PlanTarget(sparsity=0.3),
        method="test",
        ranking=PlanRanking(sha256=ranking.sha256),
    )


@torch.no_grad()
def silence(model: PreTrainedModel, architecture: Architecture, ranking: Ranking) -> None:
    """Zero, in a dense model, the columns that read what `architecture` removes; nothing is cut.

    The columns are worked out here by hand, not by the code that cuts.
    """
    view = decoder_view(model)
    text = model.config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    assert ranking.kv_groups is not None
    for (layer, sublayer), option in architecture.items:
        out = view.out_projection(layer) if sublayer is Sublayer.FFN else view.attention_out(layer)
        if option.units == 0 and out.bias is not None:  # what a sub-layer adds without any units
            out.bias.zero_()
        if sublayer is Sublayer.FFN:
            out.weight[:, torch.from_numpy(ranking.ffn[layer][option.units :])] = 0
            continue
        num_groups = len(ranking.kv_groups[layer])
        by_group = out.weight.view(out.out_features, num_groups, heads // num_groups, -1)
        for group in ranking.kv_groups[layer][option.units :]:
            by_group[:, group] = 0


def text_inputs(length: int = 12, *, rows: int = 1) -> dict[str, torch.Tensor]:
    """Random ordinary tokens [rows, length]."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(7, 100, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def image_inputs(family: str) -> dict[str, torch.Tensor]:
    """A random picture between ordinary tokens, as the family's model takes it: a prompt, with no answer."""
    generator = torch.Generator().manual_seed(2)
    words = torch.randint(7, 100, (1, 11), generator=generator)
    ids = torch.cat([words[:, :3], torch.full((1, 4), IMAGE_TOKEN), words[:, 3:]], dim=1)
    picture = torch.randn((1, 3, 32, 32), generator=generator)
    llava = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": picture}
    return dict(with_pictures(family, Batch(llava, ())).inputs)


def inputs_of(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that a family's model is shown: a text and, if it sees, a picture in a text."""
    shown = {"text": text_inputs()}
    if family.startswith("paligemma"):  # it says which tokens are the prefix, which sees all of itself
        shown["text"]["token_type_ids"] = torch.zeros_like(shown["text"]["input_ids"])
    return shown | ({"image": image_inputs(family)} if family in IMAGE_FAMILIES else {})


def logits_of(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits [B, T, V]."""
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def next_token_logits(model: PreTrainedModel) -> torch.Tensor:
    """Logits [1, T, V] of the language model on a text."""
    return logits_of(model, text_inputs())


def weight_bytes(folder: Path) -> int:
    """Of all weight files of a checkpoint."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def with_tokens(inputs: dict[str, torch.Tensor], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """`inputs` with ordinary tokens [B, N] after the prompt; what tells kinds of tokens apart calls them text."""
    longer = dict(inputs)
    for name, fill in (("attention_mask", 1), ("token_type_ids", None), ("mm_token_type_ids", 0)):
        if name in inputs:
            # PaliGemma's 1 is what follows the prefix, Gemma 3's an image.
            is_prefix = name == "token_type_ids" and not inputs[name].any()
            value = int(is_prefix) if fill is None else fill
            longer[name] = torch.cat([inputs[name], torch.full_like(tokens, value).to(inputs[name].dtype)], dim=1)
    longer["input_ids"] = torch.cat([inputs["input_ids"], tokens], dim=1)
    return longer
