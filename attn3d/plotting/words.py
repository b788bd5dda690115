"""Names of files and labels as text in a figure, taken as they are."""

from __future__ import annotations


def verbatim(name: str) -> str:
    """A name in which matplotlib finds no formula; what is not UTF-8 in it is shown with backslashes."""
    return name.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
