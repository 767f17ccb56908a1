"""Reading tokenizer.model: the pieces of a SentencePiece model with their scores.

The file is one protocol buffer message, `ModelProto` of sentencepiece_model.proto
(https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto). A few of its fields are all that an
export needs, so the wire format is read here (https://protobuf.dev/programming-guides/encoding/) without a library.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import CheckpointError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

BPE = 2
"""`TrainerSpec.ModelType` of byte-pair encoding, which llama.cpp calls SPM; 1 is a unigram model."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary. `kind`: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The pieces, by id, and how text is prepared for them. Ids are -1 where the model has no such token."""

    pieces: tuple[Piece, ...]
    model_type: int
    adds_space_prefix: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Parse a tokenizer.model; raises CheckpointError if it is not one."""
    try:
        return _model(path.read_bytes())
    except (IndexError, struct.error, UnicodeDecodeError, TypeError, OverflowError) as error:
        raise CheckpointError("tokenizer.model must be a SentencePiece model", values=str(path)) from error


def _model(data: bytes) -> SentencePieceModel:
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                fields = dict(_fields(value))
                score = struct.unpack("<f", _raw(fields.get(2, b"\0\0\0\0")))[0]
                pieces.append(Piece(_raw(fields[1]).decode(), float(score), _whole(fields.get(3, 1))))
            case 2, bytes():
                trainer = dict(_fields(value))
            case 3, bytes():
                normalizer = dict(_fields(value))
    if not pieces:
        raise IndexError("no pieces")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_whole(trainer.get(3, 1)),
        adds_space_prefix=bool(_whole(normalizer.get(3, 1))),
        unk_id=_whole(trainer.get(40, 0)),
        bos_id=_whole(trainer.get(41, 1)),
        eos_id=_whole(trainer.get(42, 2)),
        pad_id=_whole(trainer.get(43, -1)),
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message in order: number and value. Raises IndexError if the message is cut off."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, position = _varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise IndexError(f"wire type {kind}")
        if position + size > len(data):
            raise IndexError("cut off")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A little-endian base-128 number and where it ends; negative ones come as 64-bit two's complement."""
    value, shift = 0, 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << 64) if value >= 1 << 63 else value), position


def _raw(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a number where bytes should be")
    return value


def _whole(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("bytes where a number should be")
    return value
