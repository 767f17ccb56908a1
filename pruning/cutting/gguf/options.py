"""What a user may choose of an export."""

from enum import StrEnum


class TensorType(StrEnum):
    """What a matrix of the exported model is stored as. Vectors (norms, biases) are always f32."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


class ClassToken(StrEnum):
    """Where the llama.cpp that will run the file puts a CLIP tower's class token."""

    LAST = "last"
    FIRST = "first"
