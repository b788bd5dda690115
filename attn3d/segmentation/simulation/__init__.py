"""Head CT with haemorrhage from real anatomy: simulated, seeded, there without a download."""

from attn3d.segmentation.simulation.baseline import threshold_segmentation
from attn3d.segmentation.simulation.cohort import simulate
from attn3d.segmentation.simulation.haemorrhages import HAEMORRHAGES

__all__ = ["HAEMORRHAGES", "simulate", "threshold_segmentation"]
