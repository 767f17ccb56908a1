"""The tokenizer, trained and written in the standard Hugging Face layout.

Plain GPT-2 style byte-level BPE: other runtimes (llama.cpp among them) read it as it is.
"""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from reference.conversations import LOOK_PLAN, STUDY_PLAN, sample_conversation
from reference.layout import END, PAD, Layout

VOCAB_SIZE = 768
_CORPUS_CONVERSATIONS = 3000


def train_tokenizer(layout: Layout) -> PreTrainedTokenizerFast:
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
        special_tokens=layout.special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        **({"bos_token": layout.bos} if layout.bos else {}),
        additional_special_tokens=[token for token in layout.special if token not in (PAD, END, layout.bos)],
        **({"extra_special_tokens": layout.named} if layout.named else {}),
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
