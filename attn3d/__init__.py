"""Attention for 3-D medical-image networks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attn3d.api import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports the library on first access to a public name, so that ``attn3d --help`` does not import PyTorch."""
    if "__all__" not in globals():
        api = import_module("attn3d.api")
        globals().update({public: getattr(api, public) for public in ("__all__", *api.__all__)})
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns all names, including those that are not imported yet."""
    return sorted({*globals(), *import_module("attn3d.api").__all__})
