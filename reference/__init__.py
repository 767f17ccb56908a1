"""A small, really trained LLaVA, the visual-question world it learned, and a second model of that world, a Gemma 3.

Everything else in the repository can run against them with nothing downloaded. The trained models are in
``reference/model`` and ``reference/second/model``, their conversations in ``reference/data``; ``python -m
reference.build`` makes the first and the conversations, ``python -m reference.build second`` the second.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
SECOND_MODEL_DIR = Path(__file__).parent / "second" / "model"
DATA_DIR = Path(__file__).parent / "data"
