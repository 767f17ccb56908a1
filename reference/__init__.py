"""A small, really trained LLaVA and the visual-question world it learned.

Everything else in the repository can run against it with nothing downloaded. The trained model is in
``reference/model``, its conversations in ``reference/data``; ``python -m reference.build`` makes both.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
DATA_DIR = Path(__file__).parent / "data"
