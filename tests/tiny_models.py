"""Tiny random models with real processors, made in milliseconds: one builder a family."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pruning.surgery import resize_ffns

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% for c in m.content %}"
    "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<bos>", "<eos>", "<image>", "<|user|>", "<|assistant|>"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["what is it? red blue seven three"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        extra_special_tokens={"image_token": "<image>"},
    )


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=16,
    )


def _text_sizes(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _llava(text_class: type, *, tied: bool = False, **extra: object) -> PreTrainedModel:
    tokenizer = tiny_tokenizer()
    text = text_class(**_text_sizes(tokenizer), tie_word_embeddings=tied, **extra)
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=text,
        image_token_index=3,
        vision_feature_layer=-1,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    return LlavaForConditionalGeneration(config)


def _qwen2_vl() -> PreTrainedModel:
    sizes = _text_sizes(tiny_tokenizer())
    config = Qwen2VLConfig(
        text_config={
            **sizes,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 8, "mlp_ratio": 2},
        image_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        video_token_id=6,
    )
    return Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl() -> PreTrainedModel:
    sizes = _text_sizes(tiny_tokenizer())
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        text_config={**sizes, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "patch_size": 8,
            "fullatt_block_indexes": [1],
        },
        image_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
        video_token_id=6,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llava-llama": lambda: _llava(LlamaConfig),
    "llava-llama-tied": lambda: _llava(LlamaConfig, tied=True),
    "llava-llama-biases": lambda: _llava(LlamaConfig, mlp_bias=True),
    "llava-mistral": lambda: _llava(MistralConfig, sliding_window=None),
    "llava-mistral-window": lambda: _llava(MistralConfig, sliding_window=5),
    "llava-qwen2": lambda: _llava(Qwen2Config),
    "llava-qwen2-window": lambda: _llava(Qwen2Config, use_sliding_window=True, sliding_window=5, max_window_layers=2),
    "llava-qwen3": lambda: _llava(Qwen3Config, head_dim=8),
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
}


def tiny_model(name: str = "llava-llama", *, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return BUILDERS[name]().eval()


def tiny_processor() -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=False
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tiny_tokenizer(),
        patch_size=16,
        chat_template=TEMPLATE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def save_tiny_checkpoint(
    folder: Path, name: str = "llava-llama", *, seed: int = 0, shard: str = "5GB", ffn_width: int | None = None
) -> Path:
    model = tiny_model(name, seed=seed)
    if ffn_width is not None:
        resize_ffns(model, dict.fromkeys(range(4), ffn_width))
        for parameter in model.get_decoder().layers.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        model.config.get_text_config().intermediate_size = ffn_width
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_processor().save_pretrained(folder)
    return folder


def write_conversations(folder: Path, count: int = 6, *, turns: int = 2, seed: int = 0) -> Path:
    """A LLaVA-format file with `count` random pictures, the last conversation text-only; returns its path."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "seven", "three", "seven three"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    items = []
    for index in range(count):
        messages = []
        for turn in range(turns):
            has_image = turn == 0 and index < count - 1
            messages.append({"from": "human", "value": ("<image>\n" if has_image else "") + f"what is it {turn}?"})
            messages.append({"from": "gpt", "value": str(rng.choice(words))})
        item: dict[str, object] = {"id": f"c{index}", "conversations": messages}
        if index < count - 1:
            item["image"] = f"images/{index}.png"
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
        items.append(item)
    path = folder / "conversations.json"
    path.write_text(json.dumps(items))
    return path
