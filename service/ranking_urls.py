"""Where the server offers ranking files. Plans name these addresses, also those that are made without FastAPI."""

from urllib.parse import quote


def model_ranking_url(model_id: str) -> str:
    """Where the server offers a model's ranking file, relative to its own address."""
    return f"/v1/models/{quote(model_id, safe='/')}/ranking"


def ranking_url(sha256: str) -> str:
    """Where the server offers the ranking file with this sha256, relative to its own address."""
    return f"/v1/rankings/{sha256}"
