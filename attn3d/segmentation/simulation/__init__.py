"""Simulated head CT with haemorrhage, made from real anatomy with a seed and without a download."""

from attn3d.segmentation.simulation.cohort import simulate
from attn3d.segmentation.simulation.haemorrhages import HAEMORRHAGES
from attn3d.segmentation.simulation.scanner import threshold_segmentation

__all__ = ["HAEMORRHAGES", "simulate", "threshold_segmentation"]
