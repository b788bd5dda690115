"""Hides advice of other libraries that a user of the commands cannot follow."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_advice(log: str, *messages: str, level: int = logging.WARNING) -> Iterator[None]:
    """Hides the messages of a logger below a level, and warnings that contain one of ``messages``.

    A level that hides more already stays as it is.
    """
    logger = logging.getLogger(log)
    before = logger.level
    logger.setLevel(max(level, logger.getEffectiveLevel()))
    try:
        with warnings.catch_warnings():
            for message in messages:
                warnings.filterwarnings("ignore", message=f"(?s).*{message}.*")
            yield
    finally:
        logger.setLevel(before)
