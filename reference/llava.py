"""The reference model: a LLaVA small enough to train on two cores and deep enough to be worth pruning layer by layer.

Choices: 12 decoder layers, so that an allocation over layers has room; grouped-query attention and SwiGLU, as in
the models this stands for; a feed-forward width of only 1x the hidden size and no weight decay on it, because with
2x half of it could be removed unnoticed; a picture of 4x4 cells is 16 image tokens, one a cell.
"""

import torch
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reference.glyphs import CELL_PX, CELLS, IMAGE_PX
from reference.layout import Layout

NUM_LAYERS = 12
HIDDEN = 128
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 4, 16
FFN_WIDTH = 128
CONTEXT = 512
FINAL_NORM = 0.03
"""Initial gain of the last norm: with tied embeddings of unit scale, gain 1 would start with logits of scale 11."""

LAYOUT = Layout(image="<image>")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<|user|>' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant|>' -}}"
    "{%- else -%}{{- raise_exception('roles are user and assistant, got ' ~ message['role']) -}}{%- endif -%}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt and (not messages or messages[-1]['role'] != 'assistant') -%}"
    "{{- '<|assistant|>' -}}{%- endif -%}"
)
"""No generation prompt after an assistant message: every rendering is a prefix of the next one."""


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The configuration of the reference model."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        projection_dim=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=CELL_PX,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=FFN_WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(LAYOUT.image),
        image_seq_length=CELLS,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A freshly initialised model; seed torch before calling."""
    model = LlavaForConditionalGeneration(build_config(tokenizer))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=24
    )
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: LlavaForConditionalGeneration) -> None:
    """Embeddings of unit scale and layers that begin as the identity.

    With the usual small embeddings, the noise of the first updates of twelve layers drowns what the words and the
    projector say, and looking at the picture is not learned for a thousand steps.
    """
    text = model.model.language_model
    generator = torch.Generator().manual_seed(0)  # its own: the caller's seed decides the rest alone
    text.embed_tokens.weight.normal_(std=1.0, generator=generator)
    text.norm.weight.fill_(FINAL_NORM)
    for layer in text.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Image processor, tokenizer and chat template in one."""
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_PX, "width": IMAGE_PX},
        crop_size={"height": IMAGE_PX, "width": IMAGE_PX},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=CELL_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # the CLIP class token, which the "default" strategy drops again
        image_token=LAYOUT.image,
        chat_template=CHAT_TEMPLATE,
    )
