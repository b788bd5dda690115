"""The mechanisms, one file per paper.

Every file in this folder is found automatically. It registers its class with `register_attention`, and the names in its
``__all__`` become public here and in `attn3d`.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from attn3d.mechanisms.base import Mechanism as Mechanism

if TYPE_CHECKING:  # type checkers cannot see the names that are imported below

    def __getattr__(name: str) -> Any: ...


__all__: list[str] = []
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
__all__.sort()
