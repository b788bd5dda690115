"""Pictures of volumes, of what attention looked at, and of results.

Matplotlib, nibabel and SciPy come with the extra ``segmentation`` and are imported when a picture is asked for.
"""

from attn3d.plotting.attention import plot_attention_maps
from attn3d.plotting.charts import confidence_interval, plot_comparison, plot_training
from attn3d.plotting.hanging import COLORS
from attn3d.plotting.labels import plot_lesions, plot_segmentation

__all__ = [
    "COLORS",
    "confidence_interval",
    "plot_attention_maps",
    "plot_comparison",
    "plot_lesions",
    "plot_segmentation",
    "plot_training",
]
