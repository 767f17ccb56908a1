"""Batches as LLaVA's processor makes them, with their pictures as the vision towers of other families take them."""

from collections.abc import Callable, Mapping

import torch

from pruning.data.batches import AnswerSpan, Batch
from tests.tiny_models.builders import IMAGE_FAMILIES
from tests.tiny_models.processor import IMAGE_TOKEN

Inputs = dict[str, torch.Tensor]

_TOKENS = 4  # a picture of LLaVA's


def with_pictures(family: str, batch: Batch) -> Batch:
    """`batch` of the tiny LLaVA processor for the tiny model `family`: as many image tokens as it has, its tensors."""
    if "pixel_values" not in batch.inputs:
        return batch
    assert family in IMAGE_FAMILIES
    if family in ("llava-next", "llava-onevision"):
        batch = _with_more_image_tokens(batch, 10)
    reshape = next((reshape for prefix, reshape in _FORMATS.items() if family.startswith(prefix)), None)
    return batch if reshape is None else Batch(reshape(batch), batch.spans)


def _with_more_image_tokens(batch: Batch, count: int) -> Batch:
    """`count` image tokens a picture: everything after a picture moves right, in every row by as much as in its own."""
    rows, masks, shifts = [], [], []
    for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
        places = (ids == IMAGE_TOKEN).nonzero().ravel().tolist()
        end = places[-1] + 1 if places else 0
        more = count - _TOKENS if places else 0
        rows.append(torch.cat([ids[:end], torch.full((more,), IMAGE_TOKEN), ids[end:]]))
        masks.append(torch.cat([torch.ones(more, dtype=mask.dtype), mask]))
        shifts.append(more)
    pad = _padding_to(max(len(row) for row in rows))
    inputs = {
        **batch.inputs,
        "input_ids": torch.stack([pad(row) for row in rows]),
        "attention_mask": torch.stack([pad(mask) for mask in masks]),
    }
    spans = tuple(AnswerSpan(s.row, s.start + shifts[s.row], s.stop + shifts[s.row]) for s in batch.spans)
    return Batch(inputs, spans)


def _padding_to(length: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pads rows on the right with zeros."""
    return lambda row: torch.nn.functional.pad(row, (0, length - len(row)))


def _in_tiles(batch: Batch) -> Inputs:
    """LLaVA-NeXT's: each picture whole, and in tiles; here one, the picture again."""
    pictures = batch.inputs["pixel_values"]
    sizes = torch.tensor([[32, 32]] * len(pictures))
    return {**batch.inputs, "pixel_values": torch.stack([pictures, -pictures], dim=1), "image_sizes": sizes}


def _in_patches(batch: Batch) -> Inputs:
    """Qwen-VL's patches [16 n, 3 x 2 x 8 x 8] of pictures [n, 3, 32, 32]: four merged tokens each."""
    ids, pictures = batch.inputs["input_ids"], batch.inputs["pixel_values"]
    patches = pictures.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5)  # [n, 4, 4, 3, 8, 8]
    return {
        "input_ids": ids,
        "attention_mask": batch.inputs["attention_mask"],
        "mm_token_type_ids": (ids == IMAGE_TOKEN).int(),
        "pixel_values": patches.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1).reshape(-1, 384),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * len(pictures)),
    }


def _after_a_prefix(batch: Batch) -> Inputs:
    """PaliGemma's: 0 for the prefix, which sees all of itself, 1 from the first answer on."""
    types = torch.zeros_like(batch.inputs["input_ids"])
    for row in range(len(types)):
        first = min((span.start for span in batch.spans if span.row == row), default=types.shape[1])
        types[row, first:] = 1
    return {**batch.inputs, "token_type_ids": types}


def _with_image_types(batch: Batch) -> Inputs:
    """Gemma 3's: 1 for image tokens, which see all of their picture."""
    return {**batch.inputs, "token_type_ids": (batch.inputs["input_ids"] == IMAGE_TOKEN).long()}


def _in_rows(batch: Batch) -> Inputs:
    """Pictures of Idefics 2 and 3 [B, 1, 3, 32, 32]: zeros where a row has none."""
    pictures = batch.inputs["pixel_values"]
    rows = torch.zeros(len(batch.inputs["input_ids"]), 1, *pictures.shape[1:], dtype=pictures.dtype)
    rows[(batch.inputs["input_ids"] == IMAGE_TOKEN).any(dim=1), 0] = pictures
    return {**batch.inputs, "pixel_values": rows}


def _with_sizes(batch: Batch) -> Inputs:
    """Pixtral's: every picture with its size."""
    return {**batch.inputs, "image_sizes": torch.tensor([[32, 32]] * len(batch.inputs["pixel_values"]))}


_FORMATS: Mapping[str, Callable[[Batch], Inputs]] = {
    "llava-next": _in_tiles,
    "llava-onevision": _in_tiles,
    "qwen": _in_patches,
    "paligemma": _after_a_prefix,
    "gemma3": _with_image_types,
    "mistral3": _with_sizes,
    "idefics2": _in_rows,
    "idefics3": _in_rows,
    "smolvlm": _in_rows,
}
