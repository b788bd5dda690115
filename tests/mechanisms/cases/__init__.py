"""The cases by the name of their mechanism, which is also the name of the file."""

import importlib
import pkgutil

from tests.mechanisms.case import Case

CASES: dict[str, Case] = {
    found.name: importlib.import_module(f"{__name__}.{found.name}").CASE for found in pkgutil.iter_modules(__path__)
}
