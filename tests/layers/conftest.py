import pytest

from attn3d.layers import blockwise


@pytest.fixture
def several_blocks(monkeypatch):
    """Makes blocks so small that the maps of a test have several."""
    monkeypatch.setattr(blockwise, "_BLOCK", 5)
