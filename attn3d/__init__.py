"""Attention for 3-D medical-image networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn3d.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the library when the first name of it is asked for: ``attn3d --help`` answers without PyTorch."""
    api = import_module("attn3d.api")
    if name in globals():  # a module that came with it, such as `attn3d.plotting`
        return globals()[name]
    if name == "__all__" or name in api.__all__:
        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All that there is, imported or not."""
    return sorted({*globals(), *import_module("attn3d.api").__all__})
