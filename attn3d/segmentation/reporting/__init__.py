"""A run as a page to read: scores, curves, overlays and attention maps in one file without a script."""

from attn3d.segmentation.reporting.page import report

__all__ = ["report"]
