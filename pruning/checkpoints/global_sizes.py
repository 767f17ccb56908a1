"""transformers' warning about global sizes, where they are meant to be read."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "transformers.integrations.heterogeneity.configuration_utils"
_WARNING = "Reading global config value"


@contextmanager
def global_sizes_are_meant() -> Iterator[None]:
    """In the block transformers does not warn that its own code reads a global size of a config whose layers differ.

    It warns once a size and process, of models whose layers have all got their recorded sizes; nobody who reads that
    can do anything about it.
    """
    logger = logging.getLogger(_LOGGER)
    logger.addFilter(_is_about_else)
    try:
        yield
    finally:
        logger.removeFilter(_is_about_else)


def _is_about_else(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_WARNING)
