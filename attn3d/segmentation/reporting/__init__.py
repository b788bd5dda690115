"""The report of a run: scores, curves, overlays and attention maps in one HTML file."""

from attn3d.segmentation.reporting.page import report

__all__ = ["report"]
