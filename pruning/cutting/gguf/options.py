"""What a user may choose of an export."""

from enum import StrEnum


class TensorType(StrEnum):
    """What a matrix of the exported model is stored as. Vectors (norms, biases) are always f32."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


class StoredType(StrEnum):
    """How a file holds a tensor: all that may be chosen, and q4_0, which weights in four bits are in."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"


class ClassToken(StrEnum):
    """Where the llama.cpp that will run the file puts a CLIP tower's class token."""

    LAST = "last"
    FIRST = "first"


class Quantisation(StrEnum):
    """llama.cpp's file types that need no importance matrix, by the names of its `llama-quantize`."""

    Q3_K_M = "Q3_K_M"
    Q4_0 = "Q4_0"
    Q4_K_S = "Q4_K_S"
    Q4_K_M = "Q4_K_M"
    Q5_K_S = "Q5_K_S"
    Q5_K_M = "Q5_K_M"
    Q6_K = "Q6_K"
    Q8_0 = "Q8_0"
