"""What a user may choose of an export."""

from enum import StrEnum

from pruning.anatomy.gguf_types import TensorType as TensorType  # what to choose of, with the rest


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
