"""What transformers raises on files that it cannot use."""

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    ImportError,
    StrictDataclassError,
    SafetensorError,
)
"""From configs, models and weights: seen where one field of config.json had a value of another type or size, which
fails wherever it is first used, where files were damaged, and where a model needs a package. Python running out of
memory is none of them: the files are not at fault.
"""
