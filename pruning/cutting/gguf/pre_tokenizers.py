"""How a byte-level BPE tokenizer splits text into words before it merges, by llama.cpp's name for it.

llama.cpp has the splitting in its code and takes its name from `tokenizer.ggml.pre` (src/llama-vocab.cpp); a
tokenizer.json has it as data. This table joins the two. A splitting that is not in it is refused rather than guessed:
with a wrong one a model reads other tokens than it was trained on, and answers worse without a word of warning.
"""

from collections.abc import Mapping
from typing import Any

from pruning.errors import UnsupportedModelError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased_words(suffix: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return f"{start}{_UPPER}*{_LOWER}+{suffix}|{start}{_UPPER}+{_LOWER}*{suffix}"


LLAMA3 = _CONTRACTIONS + _WORDS + r"\p{N}{1,3}" + _REST
QWEN2 = _CONTRACTIONS + _WORDS + r"\p{N}" + _REST
TEKKEN = _cased_words("") + r"|\p{N}" + _CASED_REST
GPT_4O = _cased_words(f"{_CONTRACTIONS}?") + r"|\p{N}{1,3}" + _CASED_REST

_BYTES, _GPT2 = "bytes", "gpt-2 words"  # ByteLevel without and with its own splitting, that of GPT-2

_NAMES: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    (("digits", _GPT2), False): "smollm",
    ((LLAMA3, _BYTES), True): "llama-bpe",
    ((LLAMA3, _BYTES), False): "dbrx",
    ((QWEN2, _BYTES), False): "qwen2",
    ((TEKKEN, _BYTES), True): "tekken",
    ((GPT_4O, _BYTES), False): "gpt-4o",
}
"""(what the pre-tokenizer does, step by step; whether words in the vocabulary are taken whole) -> llama.cpp's name."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the splitting of a tokenizer.json document; raises UnsupportedModelError if it has none."""
    steps = _steps(tokenizer.get("pre_tokenizer"))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = _NAMES.get((steps, whole_words))
    if name is None:
        raise UnsupportedModelError(
            "the tokenizer must split text in a way that llama.cpp has a name for",
            values=" then ".join(steps) + (", words whole" if whole_words else ""),
            remedy=f"Known: {', '.join(_NAMES.values())}. If llama.cpp has yours, name it with --pre-tokenizer",
        )
    return name


def _steps(node: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A pre-tokenizer as a sequence of steps; what is not understood stands for itself and is in no table."""
    if node is None:
        return ("none",)
    match node:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return tuple(step for part in parts for step in _steps(part))
        case {"type": "ByteLevel", "add_prefix_space": False, **options}:
            return (_GPT2 if options.get("use_regex", True) else _BYTES,)
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            return (regex,)
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Removed", "invert": True}:
            return (regex,)
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case _:
            return (str(dict(node)),)
