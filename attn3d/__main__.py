"""``python -m attn3d``."""

from attn3d.cli import app

app(prog_name="attn3d")
