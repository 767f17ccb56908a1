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
    following = offset + limit
    link = None
    if following < len(everything):
        link = f"{path}?{urlencode({**(query or {}), 'limit': limit, 'offset': following})}"
    return everything[offset:following], PageOf(total=len(everything), limit=limit, offset=offset, next=link)
