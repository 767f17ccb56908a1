"""The forward pass used in training and measuring, equal to the Hugging Face one but without its bookkeeping.

Every sequence has its picture at the same place, padding is on the right, and only positions that predict an
answer token need logits. Letters: B sequences, T tokens, C cells, D model width, A answer tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration, LlavaForConditionalGeneration

from reference.batches import IGNORE, Batch, normalise
from reference.gemma import attention_masks
from reference.glyphs import CELLS
from reference.train_vision import patch_features

VisionLanguageModel: TypeAlias = LlavaForConditionalGeneration | Gemma3ForConditionalGeneration

Decoder = Callable[[Tensor, int], Tensor]
"""Input embeddings [B, T, D] and where in them the picture starts -> final hidden states [B, T, D]."""


def decoder_of(model: VisionLanguageModel) -> Decoder:
    """The plain decoder of a model; causal attention makes right padding harmless, so no mask is of padding."""
    language_model, config = model.model.language_model, model.config
    is_gemma = config.model_type == "gemma3"

    def run(embeddings: Tensor, image_start: int) -> Tensor:
        masks = attention_masks(config, embeddings.shape[1], image_start) if is_gemma else None
        hidden: Tensor = language_model(
            inputs_embeds=embeddings, attention_mask=masks, use_cache=False
        ).last_hidden_state
        return hidden

    return run


def answer_logits(model: VisionLanguageModel, decoder: Decoder, batch: Batch) -> Tensor:
    """Logits of the positions that predict an answer token, row by row: [A, V]. The vision tower gets no gradient."""
    with torch.no_grad():
        seen = patch_features(model.model.vision_tower, normalise(batch.pixels))
    image = model.model.multi_modal_projector(seen)
    embedded = model.model.language_model.embed_tokens(batch.ids)
    start, after = batch.image_start, batch.image_start + CELLS
    embeddings = torch.cat([embedded[:, :start], image, embedded[:, after:]], dim=1)
    hidden = decoder(embeddings, start)[batch.labels != IGNORE]
    logits: Tensor = functional.linear(hidden, model.lm_head.weight)
    return logits


def turns_right(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which turns are answered exactly, end token included, given the true history: what greedy decoding would say.

    Returns:
        right bool [B, N] and asked bool [B, N], for N turns.
    """
    mask = batch.labels != IGNORE
    wrong = torch.zeros_like(batch.labels)
    wrong[mask] = (logits.argmax(-1) != batch.labels[mask]).long()
    count = int(batch.turns.max()) + 1
    shape = (len(batch.ids), count + 1)
    slot = batch.turns + 1  # column 0 collects what belongs to no answer
    wrong_in = torch.zeros(shape, dtype=torch.long).scatter_add_(1, slot, wrong)[:, 1:]
    tokens_in = torch.zeros(shape, dtype=torch.long).scatter_add_(1, slot, mask.long())[:, 1:]
    asked = tokens_in > 0
    return asked & (wrong_in == 0), asked
