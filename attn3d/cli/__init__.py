"""The command ``attn3d``, also ``python -m attn3d``."""

from attn3d.cli.app import app
from attn3d.cli.costs import list_mechanisms, plan, sites
from attn3d.cli.exporting import export
from attn3d.cli.segmentation import compare, evaluate, predict, report, simulate, train

for command in (simulate, train, predict, evaluate, report, compare, export, sites, plan):
    app.command()(command)
app.command("list")(list_mechanisms)

__all__ = ["app"]
