"""Messages of other libraries are hidden inside a block, and only there."""

import contextlib
import logging
import warnings

from attn3d.segmentation.advice import without_advice


def test_only_the_named_messages_are_hidden_and_only_inside(caplog, recwarn):
    logger = logging.getLogger("test.advice")
    logger.setLevel(logging.DEBUG)
    with contextlib.suppress(KeyError), without_advice("test.advice", "many workers"):
        warnings.warn("it does not have many workers", stacklevel=1)
        warnings.warn("another", stacklevel=1)
        logger.info("inside")
        raise KeyError
    logger.info("after")
    assert [str(one.message) for one in recwarn] == ["another"]
    assert caplog.messages == ["after"]
    assert logger.level == logging.DEBUG
