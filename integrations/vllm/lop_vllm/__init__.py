"""vLLM taught to serve checkpoints whose decoder layers differ in size, as lop-service writes them.

vLLM calls `register` in each of its processes (entry point group `vllm.general_plugins`). Five of its functions do a
little more then, and only for decoders of the family table whose config records sizes by layer:

- the registry's `inspect_model_cls` and `resolve_model_cls` choose the transformers backend (serving.py);
- `ModelConfig.verify_with_parallel_config` refuses what would fail late, or be wrong (checks.py);
- the backend's `recursive_replace` gives the layers, still without memory, their sizes first (layers.py);
- its `_create_attention_instances` passes by the layers that have no attention (layers.py).
"""

import logging

TESTED = "0.32"
"""The version of vLLM whose functions are extended."""

logger = logging.getLogger(__name__)


def register() -> None:
    """Extend vLLM in this process; may be called again.

    Another version of vLLM than the tested one serves all models as before, but for pruned ones: they are refused by
    name (refusing.py).
    """
    import vllm

    if ".".join(vllm.__version__.split(".")[:2]) != TESTED:
        from lop_vllm.refusing import refuse_pruned

        if not refuse_pruned(vllm.__version__, TESTED):
            logger.warning(
                "lop-vllm works with vLLM %s, this is %s: pruned checkpoints will stop at a shape that differs. "
                "Install vLLM %s.*, or a lop-vllm for your version.",
                TESTED,
                vllm.__version__,
                TESTED,
            )
        return
    from lop_vllm.checks import extend_checks
    from lop_vllm.layers import extend_backend
    from lop_vllm.serving import extend_registry

    extend_registry()
    extend_checks()
    extend_backend()
