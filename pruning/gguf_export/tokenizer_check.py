"""Does llama.cpp encode text with an exported file as transformers does with the folder? Asked, not assumed."""

from dataclasses import dataclass
from pathlib import Path

from pruning.gguf_export.llama_runtime import LlamaVocabulary
from pruning.gguf_export.tokenizer_reader import load_tokenizer

PROBES = (
    "Hello, world! What is in this picture?",
    " leading and trailing spaces  ",
    "two  spaces, three   spaces\tand a\ttab",
    "lines\nand\n\nempty lines\r\n",
    "It's what we'll say: they've, I'm, you'd, WE'RE, don'T",
    "12 345 6789 3.14159 1,000,000 2025-06-12",
    "def f(x):\n    return x**2 + [1, 2][0]  # code",
    "Grüße aus Köln, où êtes-vous, señor? Ελληνικά, русский",
    "日本語のテキスト 中文文本 한국어 العربية हिन्दी",
    "emoji 🙂🚀👩‍🚀 and symbols €±≈→",
    "CamelCaseWord snake_case_word UPPER lower MiXeD",
    "...!!!???---///\\\\\"\"''``~~",
    "a",
)
"""Texts that tell splittings apart: spaces, contractions, digits, scripts, code."""


@dataclass(frozen=True, slots=True)
class EncodingDifference:
    """A text, and what the two make of it."""

    text: str
    transformers: tuple[int, ...]
    llama_cpp: tuple[int, ...]


def encoding_differences(
    folder: str | Path, file: str | Path, texts: tuple[str, ...] = PROBES
) -> list[EncodingDifference]:
    """The texts that llama.cpp encodes otherwise; raises MissingExtraError if llama-cpp-python is not installed."""
    tokenizer = load_tokenizer(Path(folder))
    specials = [text for text in tokenizer.all_special_tokens if text]
    asked = (*texts, *(f"one{text}two" for text in specials))
    found = []
    with LlamaVocabulary(file) as runtime:
        for text in asked:
            ours, theirs = tuple(tokenizer(text).input_ids), tuple(runtime.encode(text))
            if ours != theirs:
                found.append(EncodingDifference(text, ours, theirs))
    return found
