"""Standard output that Ray's own threads do not reach."""

import logging
import threading
from typing import Any, TextIO

_logger = logging.getLogger(__name__)


class StdoutWithoutRay:
    """Standard output without what Ray's threads print there: notes on lost nodes, in the midst of a user's JSON."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if not threading.current_thread().name.startswith("ray_"):
            return self.stream.write(text)
        if text.strip():
            _logger.info("ray: %s", text.strip())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
