"""`python -m benchmarks.second_order_reload FOLDER DENSE`, conversations on stdin: KL of a folder, in its own process.

The folder's weights are read back as transformers does; the model passes whole batches, nothing is cut or cached.
"""

import json
import sys
from pathlib import Path

from pruning.checkpoints.loading import load_model, load_processor, load_pruned
from pruning.data.batches import make_batches
from pruning.data.conversations import Conversation, Turn
from pruning.measuring.evaluation import evaluate_model


def main() -> None:
    """Print one JSON document."""
    folder, dense = Path(sys.argv[1]), Path(sys.argv[2])
    told = json.load(sys.stdin)
    conversations = [
        Conversation(
            id=x["id"],
            image=None if x["image"] is None else Path(x["image"]),
            turns=tuple(Turn(**turn) for turn in x["turns"]),
        )
        for x in told
    ]
    batches = make_batches(conversations, load_processor(dense))
    metrics = evaluate_model(load_pruned(folder), batches, load_model(dense))
    print(json.dumps({"kl": metrics.kl, "agreement": metrics.agreement}))  # noqa: T201


if __name__ == "__main__":
    main()
