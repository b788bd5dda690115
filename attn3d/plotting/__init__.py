"""Figures of volumes, attention maps and results.

Matplotlib, nibabel and SciPy are installed by the extra ``segmentation`` and imported when a figure is drawn.
"""

from attn3d.plotting.attention import plot_attention_maps
from attn3d.plotting.charts import confidence_interval, plot_calibration, plot_comparison, plot_training
from attn3d.plotting.hanging import COLORS
from attn3d.plotting.labels import plot_lesions, plot_segmentation

__all__ = [
    "COLORS",
    "confidence_interval",
    "plot_attention_maps",
    "plot_calibration",
    "plot_comparison",
    "plot_lesions",
    "plot_segmentation",
    "plot_training",
]
