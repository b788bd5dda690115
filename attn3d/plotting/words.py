"""Names of files and labels as literal text in a figure."""

from __future__ import annotations


def verbatim(name: str) -> str:
    """Escapes a name so that matplotlib does not parse it as a formula; invalid UTF-8 is shown with backslashes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
