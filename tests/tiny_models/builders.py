"""One builder for each supported family and each variant that pruning must respect."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from transformers import (
    AutoModelForCausalLM,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.tiny_models import text
from tests.tiny_models.processor import IMAGE_TOKEN

_QWEN_TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "vision_start_token_id": 4,
    "vision_end_token_id": 5,
    "video_token_id": 6,
}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def clip_tower() -> CLIPVisionConfig:
    return CLIPVisionConfig(**_TOWER, image_size=32, patch_size=16, projection_dim=16)


def siglip_tower(patch_size: int = 16) -> SiglipVisionConfig:
    return SiglipVisionConfig(**_TOWER, image_size=32, patch_size=patch_size, vision_use_head=False)


def _llava(language: PreTrainedConfig, *, tied: bool = False) -> PreTrainedModel:
    language.tie_word_embeddings = tied
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=clip_tower(),
            text_config=language,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1,
            image_seq_length=4,
            tie_word_embeddings=tied,
        )
    )


def _vipllava() -> PreTrainedModel:
    """Visual features of several layers of the tower."""
    return VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=clip_tower(),
            text_config=text.llama(),
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=[-1, -2],
            image_seq_length=4,
        )
    )


def _llava_next(language: PreTrainedConfig) -> PreTrainedModel:
    return LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=clip_tower(),
            text_config=language,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1,
            image_grid_pinpoints=[[32, 32]],
        )
    )


def _llava_onevision() -> PreTrainedModel:
    return LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=siglip_tower(),
            text_config=text.qwen2(),
            image_token_index=IMAGE_TOKEN,
            video_token_index=6,
            image_grid_pinpoints=[[32, 32]],
        )
    )


def _qwen2_vl() -> PreTrainedModel:
    tower = {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32, "patch_size": 8, "mlp_ratio": 2}
    language = text.sizes(rope_parameters=text.MROPE)
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=language, vision_config=tower, **_QWEN_TOKENS))


def _qwen2_5_vl() -> PreTrainedModel:
    tower = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "patch_size": 8,
        "fullatt_block_indexes": [1],
    }
    language = text.sizes(rope_parameters=text.MROPE)
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=language, vision_config=tower, **_QWEN_TOKENS)
    )


def _qwen3_vl() -> PreTrainedModel:
    """Visual features of two blocks of the tower are added after the first two decoder layers."""
    tower = {
        "depth": 3,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "patch_size": 8,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    language = text.sizes(head_dim=8, rope_parameters={**text.MROPE, "mrope_section": [2, 1, 1]})
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=language, vision_config=tower, **_QWEN_TOKENS))


def _internvl(language: PreTrainedConfig) -> PreTrainedModel:
    return InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config={**_TOWER, "image_size": [32, 32], "patch_size": [8, 8]},
            text_config=language,
            image_token_id=IMAGE_TOKEN,
            image_seq_length=4,
            tie_word_embeddings=False,
        )
    )


def _paligemma(language: PreTrainedConfig) -> PreTrainedModel:
    config = PaliGemmaConfig(
        vision_config=siglip_tower(),
        text_config=language,
        image_token_index=IMAGE_TOKEN,
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config)


def _gemma3() -> PreTrainedModel:
    return Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=siglip_tower(patch_size=8),
            text_config=text.gemma3(),
            mm_tokens_per_image=4,
            boi_token_index=4,
            eoi_token_index=5,
            image_token_index=IMAGE_TOKEN,
        )
    )


def _mistral3() -> PreTrainedModel:
    """Four patches of the tower are merged into a token."""
    tower = {"model_type": "pixtral", **_TOWER, "head_dim": 8, "image_size": 32, "patch_size": 8}
    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=tower,
            text_config=text.mistral(head_dim=16),
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=False,
        )
    )


def _idefics2() -> PreTrainedModel:
    """A resampler, with attention and an FFN of its own, between tower and decoder."""
    resampler = {"resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2, "resampler_head_dim": 8}
    return Idefics2ForConditionalGeneration(
        Idefics2Config(
            vision_config={**_TOWER, "image_size": 32, "patch_size": 8},
            perceiver_config={**resampler, "hidden_size": 32, "num_key_value_heads": 1},
            text_config=text.mistral(sliding_window=5),
            image_token_id=IMAGE_TOKEN,
        )
    )


def _idefics3(config_class: type, model_class: type, *, tied: bool) -> PreTrainedModel:
    tower = {**_TOWER, "image_size": 32, "patch_size": 8}
    config = config_class(
        vision_config=tower,
        text_config=text.llama(tie_word_embeddings=tied),
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
        tie_word_embeddings=tied,
    )
    model: PreTrainedModel = model_class(config)
    return model


IMAGE_FAMILIES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llava-llama": lambda: _llava(text.llama()),
    "llava-llama-tied": lambda: _llava(text.llama(), tied=True),
    "llava-llama-biases": lambda: _llava(text.llama(mlp_bias=True, attention_bias=True)),
    "llava-mistral": lambda: _llava(text.mistral(head_dim=16)),
    "llava-mistral-window": lambda: _llava(text.mistral(sliding_window=5)),
    "llava-qwen2": lambda: _llava(text.qwen2()),
    "llava-qwen2-window": lambda: _llava(text.qwen2_window()),
    "llava-qwen3": lambda: _llava(text.qwen3()),
    "llava-phi3": lambda: _llava(text.phi3()),
    "llava-phi": lambda: _llava(text.phi()),
    "vipllava": _vipllava,
    "llava-next": lambda: _llava_next(text.mistral()),
    "llava-onevision": _llava_onevision,
    "qwen2-vl": _qwen2_vl,
    "qwen2.5-vl": _qwen2_5_vl,
    "qwen3-vl": _qwen3_vl,
    "internvl-qwen2": lambda: _internvl(text.qwen2()),
    "internvl-qwen3": lambda: _internvl(text.qwen3()),
    "paligemma": lambda: _paligemma(text.gemma()),
    "paligemma-mqa": lambda: _paligemma(text.gemma(num_key_value_heads=1)),
    "paligemma2": lambda: _paligemma(text.gemma2()),
    "gemma3": _gemma3,
    "mistral3": _mistral3,
    "idefics2": _idefics2,
    "idefics3": partial(_idefics3, Idefics3Config, Idefics3ForConditionalGeneration, tied=False),
    "smolvlm": partial(_idefics3, SmolVLMConfig, SmolVLMForConditionalGeneration, tied=True),
}
"""Models that see."""

_LANGUAGE_CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama": text.llama,
    "mistral": partial(text.mistral, sliding_window=5),
    "qwen2": partial(text.qwen2, tie_word_embeddings=True),
    "qwen3": text.qwen3,
    "phi3": partial(text.phi3, sliding_window=5),
    "phi": partial(text.phi, qk_layernorm=True),
    "gemma2": text.gemma2,
    "gemma3-text": text.gemma3,
}


def _language(config: Callable[[], PreTrainedConfig]) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config())
    return model


BUILDERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    **IMAGE_FAMILIES,
    **{name: partial(_language, config) for name, config in _LANGUAGE_CONFIGS.items()},
}
"""All of them, language models last."""


def tiny_model(name: str = "llava-llama", *, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return BUILDERS[name]().eval()
