"""The mechanisms, each in the file of its paper.

A file of this folder needs no line here: it registers its class by `register_attention`, and what it has in ``__all__``
is public here and in `attn3d`.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from attn3d.mechanisms.base import Mechanism as Mechanism

if TYPE_CHECKING:  # the classes are found when this runs, of which a type checker knows nothing

    def __getattr__(name: str) -> Any: ...


__all__: list[str] = []
for _file in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f"{__name__}.{_file.name}")
    for _name in getattr(_module, "__all__", ()):
        globals()[_name] = getattr(_module, _name)
        __all__.append(_name)
__all__.sort()
