"""A small SentencePiece vocabulary, as tokenizer.model and as the tokenizer.json that transformers makes of one."""

import struct
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("\u2581the", "\u2581cat", "\u2581sat", "there", "that", "\u2581a", "\u2581hat", "\u2581rests")
UNKNOWN, CONTROL, BYTE, NORMAL = 2, 3, 6, 1


def pieces() -> list[tuple[str, float, int]]:
    """Text, score and kind: specials, bytes, every beginning of a word from the right, then single characters."""
    merged: list[str] = []
    for word in WORDS:
        for start in range(len(word) - 2, -1, -1):
            if word[start:] not in merged:
                merged.append(word[start:])
    merged.sort(key=len)
    characters = sorted({character for word in WORDS for character in word})
    found = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    found += [(f"<0x{value:02X}>", 0.0, BYTE) for value in range(256)]
    found += [(text, -float(rank), NORMAL) for rank, text in enumerate(merged)]
    return found + [(text, -1000.0 - rank, NORMAL) for rank, text in enumerate(characters)]


def write_model(path: Path, *, adds_space_prefix: bool = True, model_type: int = 2) -> None:
    """tokenizer.model: a ModelProto."""
    content = b""
    for text, score, kind in pieces():
        piece = _field(1, text.encode()) + _tag(2, 5) + struct.pack("<f", score)
        if kind != NORMAL:  # the default is not written
            piece += _tag(3, 0) + _varint(kind)
        content += _field(1, piece)
    trainer = _tag(3, 0) + _varint(model_type) + _tag(43, 0) + _varint((1 << 64) - 1)  # no padding token: -1
    normalizer = _field(1, b"identity") + _tag(3, 0) + _varint(int(adds_space_prefix))
    path.write_bytes(content + _field(2, trainer) + _field(3, normalizer))


def tokenizer() -> PreTrainedTokenizerFast:
    """What transformers makes of it: byte-pair encoding with every way to make a piece of two as a merge."""
    vocab = {text: index for index, (text, _, _) in enumerate(pieces())}
    ranked = sorted((-score, text) for text, score, kind in pieces() if kind == NORMAL and score > -1000)
    merges = [
        (text[:cut], text[cut:])
        for _, text in ranked
        for cut in range(1, len(text))
        if text[:cut] in vocab and text[cut:] in vocab
    ]
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    made.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    made.add_special_tokens([AddedToken("<image>", normalized=False)])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_metaspace(scheme: str) -> PreTrainedTokenizerFast:
    """The same, with spaces written by a pre-tokenizer instead of a normalizer."""
    found = tokenizer()
    found.backend_tokenizer.normalizer = None
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme=scheme, split=False)
    return found


def of_gemma() -> PreTrainedTokenizerFast:
    """The same, with no space before a text, and split where spaces were."""
    found = tokenizer()
    found.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    return found


def _field(number: int, content: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(content)) + content


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])
