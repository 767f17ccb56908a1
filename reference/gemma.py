"""The second model: a Gemma 3 small enough to train on two cores, as unlike the reference as its world allows.

Choices: 16 decoder layers, every other one with a window of 96 tokens, so that the picture is out of its reach in the
second half of a conversation; image tokens that see all of their picture; heads of 24 that are three to a key-value
group, their queries and keys normalised; norms before and after each half of a layer; GELU gates; embeddings scaled by
the square root of their width; BOS; stored in bfloat16. The feed-forward width is 1.5x the hidden size, which is
not the 4x to 8x of real ones, for the reference's reason.
"""

import torch
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from reference.glyphs import CELL_PX, CELLS, IMAGE_PX
from reference.layout import Layout

NUM_LAYERS = 16
HIDDEN = 96
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 6, 2, 24
FFN_WIDTH = 144
WINDOW = 96
CONTEXT = 512
SHARPNESS = 6
"""The config's query_pre_attn_scalar: normalised queries and keys give scores of up to HEAD_DIM / sqrt(it), and those
of the head size itself could hardly tell one token of two hundred from the others."""
FINAL_NORM = 0.3
"""Initial gain of the last norm; see the reference's. Embeddings are smaller here, by the factor that scales them."""
BRANCH_NORM = 0.05
"""Initial gain of the norms after attention and FFN: layers begin almost as the identity."""

LAYOUT = Layout(
    image="<image_soft_token>",
    bos="<bos>",
    before_image="\n\n<start_of_image>",
    after_image="<end_of_image>\n\n",
    named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
)

CHAT_TEMPLATE = (
    "{{- '<bos>' -}}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<|user|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant|>' -}}"
    "{%- else -%}{{- raise_exception('roles are user and assistant, got ' ~ message['role']) -}}{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] | replace('<image>\\n', '<start_of_image>') -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<start_of_image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant') -%}"
    "{{- '<|assistant|>' -}}{%- endif -%}"
)
"""The processor writes line breaks and image tokens around `<start_of_image>`. Text with LLaVA's `<image>` will do,
too. No generation prompt after an assistant message: every rendering is a prefix of the next one."""


def build_config(tokenizer: PreTrainedTokenizerFast) -> Gemma3Config:
    """The configuration of the second model."""
    vision = SiglipVisionConfig(
        hidden_size=112,
        intermediate_size=224,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=CELL_PX,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        query_pre_attn_scalar=SHARPNESS,
        max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * (NUM_LAYERS // 2),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in LAYOUT.named.items()}
    return Gemma3Config(
        vision_config=vision,
        text_config=text,
        mm_tokens_per_image=CELLS,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> Gemma3ForConditionalGeneration:
    """A freshly initialised model; seed torch before calling."""
    model = Gemma3ForConditionalGeneration(build_config(tokenizer))
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=24,
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: Gemma3ForConditionalGeneration) -> None:
    """Embeddings that arrive with unit scale and layers that begin as nearly the identity, as in the reference.

    Gemma's norms multiply by one plus their weight.
    """
    text = model.model.language_model
    generator = torch.Generator().manual_seed(0)  # its own: the caller's seed decides the rest alone
    text.embed_tokens.weight.normal_(std=HIDDEN**-0.5, generator=generator)
    text.norm.weight.fill_(FINAL_NORM - 1.0)
    for layer in text.layers:
        layer.post_attention_layernorm.weight.fill_(BRANCH_NORM - 1.0)
        layer.post_feedforward_layernorm.weight.fill_(BRANCH_NORM - 1.0)


def attention_masks(config: Gemma3Config, length: int, image_start: int) -> dict[str, Tensor]:
    """What each position sees, by type of layer: bool [1, 1, T, T].

    What came before, within the window in layers that have one; image tokens see all of their picture, too.
    """
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    in_image = (position >= image_start) & (position < image_start + CELLS)
    seen = (distance >= 0) | (in_image[:, None] & in_image[None, :])
    near = distance < config.text_config.sliding_window
    return {"full_attention": seen[None, None], "sliding_attention": (seen & near)[None, None]}


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Gemma3Processor:
    """Image processor, tokenizer and chat template in one."""
    image_processor = Gemma3ImageProcessorPil(
        size={"height": IMAGE_PX, "width": IMAGE_PX}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return Gemma3Processor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        image_seq_length=CELLS,
        chat_template=CHAT_TEMPLATE,
    )
