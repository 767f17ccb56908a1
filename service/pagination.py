"""One page of a list by limit and offset: the lists (models, predictors, devices) are short and grow at the end."""

from collections.abc import Sequence
from typing import TypedDict, TypeVar
from urllib.parse import urlencode

ITEM = TypeVar("ITEM")


class PageOf(TypedDict):
    """The fields of `service.schemas.Page` beside `items`."""

    total: int
    limit: int
    offset: int
    next: str | None


def page_of(
    everything: Sequence[ITEM], *, limit: int, offset: int, path: str, query: dict[str, str] | None = None
) -> tuple[Sequence[ITEM], PageOf]:
    """The items of the page, and what says where it lies. `query` is kept in the link to the next page."""
    total = len(everything)
    link = next_page(total, limit=limit, offset=offset, path=path, query=query)
    return everything[offset : offset + limit], PageOf(total=total, limit=limit, offset=offset, next=link)


def next_page(total: int, *, limit: int, offset: int, path: str, query: dict[str, str] | None = None) -> str | None:
    """Path and query of the page after this one of `total` items; None if this is the last."""
    following = offset + limit
    if following >= total:
        return None
    return f"{path}?{urlencode({**(query or {}), 'limit': limit, 'offset': following})}"
