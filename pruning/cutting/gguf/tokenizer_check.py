"""Does llama.cpp encode text with an exported file as transformers does with the folder? Asked, not assumed."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pruning.checkpoints.file_errors import writing
from pruning.cutting.gguf.llama_runtime import LlamaVocabulary, require_llama_cpp
from pruning.cutting.gguf.tokenizer_reader import load_tokenizer
from pruning.cutting.gguf.writer import GgufFile, write_gguf
from pruning.errors import CheckpointError, MissingExtraError, UnsupportedModelError

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


def check_vocabulary(folder: Path, file: GgufFile) -> tuple[EncodingDifference, ...] | None:
    """The probe texts that llama.cpp will encode otherwise, asked before `file` is written.

    An ordinary text is not among them, for that is an error. With some SentencePiece tokenizers llama.cpp puts a space
    of its own before text that follows a special token or begins with a space: such texts may be.

    None if nobody can be asked: llama-cpp-python is not installed or broken, or transformers has no fast tokenizer for
    the folder (of a tokenizer.model without a tokenizer.json, it needs the sentencepiece package to make one).

    Raises:
        UnsupportedModelError: llama.cpp encodes ordinary text otherwise: it would be another model.
        CheckpointError: llama.cpp refuses the vocabulary.
    """
    try:
        require_llama_cpp()
        load_tokenizer(folder)
    except (MissingExtraError, CheckpointError, UnsupportedModelError):
        return None
    with TemporaryDirectory(prefix="lop-vocabulary.") as scratch:
        path = Path(scratch) / "vocabulary.gguf"
        with writing(path, what="vocabulary, which llama.cpp is asked about first"):
            write_gguf(replace(file, tensors=()), path)
        found = encoding_differences(folder, path)
    ordinary = [text for text in PROBES if not text.startswith(" ")]
    wrong = [difference.text for difference in found if difference.text in ordinary]
    if wrong:
        raise UnsupportedModelError(
            "llama.cpp must encode text as transformers does",
            values=f"{len(wrong)} of {len(ordinary)} probe texts differ, the first {wrong[0]!r}",
            remedy="If your llama.cpp is not the one that is installed here, or this is good enough, use --no-check",
        )
    return tuple(found)


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
