"""The tokenizer and the processor, trained and written in the standard Hugging Face layout.

Plain GPT-2 style byte-level BPE: other runtimes (llama.cpp among them) read it as it is.
"""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reference.conversations import LOOK_PLAN, STUDY_PLAN, sample_conversation
from reference.glyphs import CELL_PX, IMAGE_PX

PAD, END, USER, ASSISTANT, IMAGE = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>"
VOCAB_SIZE = 768
_CORPUS_CONVERSATIONS = 3000

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


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding of what the world says; the same for every seed of a build."""
    rng = np.random.default_rng(0)
    corpus = [
        text
        for index in range(_CORPUS_CONVERSATIONS)
        for turn in sample_conversation(rng, STUDY_PLAN if index % 10 else LOOK_PLAN).turns
        for text in (turn.question, turn.answer)
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, END, USER, ASSISTANT, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, IMAGE],
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


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
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
