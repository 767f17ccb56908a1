"""What a caller may hand on to `from_pretrained`: everything, but nothing that contradicts how loading works here."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pruning.errors import InputError


class _Fixed(NamedTuple):
    """The values of an argument that agree with what is done anyway, and why others are refused."""

    agreeing: tuple[Any, ...]
    why: str
    remedy: str


_NO_FILE = "Leave it out"
_FIXED: Mapping[str, _Fixed] = {
    "use_safetensors": _Fixed((True, None), "weights are read from safetensors only, never from pickles", _NO_FILE),
    "local_files_only": _Fixed((True,), "a checkpoint is a folder, and nothing is downloaded", _NO_FILE),
    "output_loading_info": _Fixed(
        (False, None), "the model is returned alone: tensors that are missing or too many are an error", _NO_FILE
    ),
    "trust_remote_code": _Fixed((False, None), "code that comes with a checkpoint is never run", _NO_FILE),
    "state_dict": _Fixed(
        (None,), "weights come from the folder", "Load it, then call model.load_state_dict(state_dict)"
    ),
    "ignore_mismatched_sizes": _Fixed((False, None), "no weights are left as they were drawn at random", _NO_FILE),
    "gguf_file": _Fixed((None,), "weights are read from safetensors only", "Load GGUF files with transformers"),
    "variant": _Fixed((None,), "weights are in the files without a variant", "Rename the files of the variant"),
    "from_tf": _Fixed((False, None), "weights are read from safetensors only", _NO_FILE),
    "from_flax": _Fixed((False, None), "weights are read from safetensors only", _NO_FILE),
    "pretrained_model_name_or_path": _Fixed((), "the folder is the first argument", _NO_FILE),
}


def accepted_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What of `arguments` goes to `from_pretrained`: those that are settled here are left out if they agree.

    Raises InputError for one that contradicts: names it, why, and what to do.
    """
    for name, value in arguments.items():
        fixed = _FIXED.get(name)
        # By identity: tensors and configs do not compare to a truth value.
        if fixed is not None and not any(value is agreeing for agreeing in fixed.agreeing):
            raise InputError(
                f"{fixed.why}, so {name} cannot be chosen", values=_shown(name, value), remedy=fixed.remedy
            )
    return {name: value for name, value in arguments.items() if name not in _FIXED}


def _shown(name: str, value: Any) -> str:
    plain = value is None or isinstance(value, bool | int | str)
    return f"{name}={value!r}" if plain else f"{name} of type {type(value).__name__}"
