"""torchvision where only its build for CUDA is to be had: its Python part is enough for the processors.

transformers' video processors, which Qwen's folders have, want torchvision. Its build for CUDA does not find its
libraries beside a torch for CPUs, and then stops while it describes two operators that nothing here calls. vLLM looks
at models in processes of its own, so the Makefile has every Python of vLLM's environment do this at its start.
"""

import sys
from importlib.util import find_spec


def import_torchvision() -> None:
    """To be called before anything else imports it; does nothing where there is none."""
    if find_spec("torchvision") is None:
        return
    try:
        import torchvision
    except RuntimeError:
        import torch

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor a, Tensor b, float c) -> Tensor")
        import torchvision  # noqa: F401
