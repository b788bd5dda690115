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


def test_a_higher_level_of_the_user_stays():
    logger, above = logging.getLogger("test.advice.below"), logging.getLogger("test.advice")
    try:
        for one in (logger, above):
            one.setLevel(logging.ERROR)
            with without_advice("test.advice.below"):
                assert not logger.isEnabledFor(logging.WARNING)
            assert one.level == logging.ERROR
            one.setLevel(logging.NOTSET)
    finally:
        above.setLevel(logging.NOTSET)


def test_a_message_of_several_lines_is_hidden(recwarn):
    with without_advice("test.advice", "many workers"):
        warnings.warn("first\nit does not have many workers\nlast", stacklevel=1)
    assert not recwarn
