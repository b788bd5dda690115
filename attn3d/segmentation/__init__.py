"""From files to a segmentation and its scores: NIfTI in, patches, training, whole scans, NIfTI out."""

from attn3d.segmentation.data import augmentation, degrade, hold_out_anterior, patch_loader, training_subject
from attn3d.segmentation.evaluation import evaluate
from attn3d.segmentation.files import (
    FileError,
    finished_file,
    read_image,
    read_label,
    write_image,
    write_label,
)
from attn3d.segmentation.inference import predict_probabilities, segment
from attn3d.segmentation.mixture import gaussian_mixture
from attn3d.segmentation.mni152 import TISSUES, write_mni152
from attn3d.segmentation.networks import NETWORKS, create_network
from attn3d.segmentation.training import SegmentationTask, train

__all__ = [
    "NETWORKS",
    "TISSUES",
    "FileError",
    "SegmentationTask",
    "augmentation",
    "create_network",
    "degrade",
    "evaluate",
    "finished_file",
    "gaussian_mixture",
    "hold_out_anterior",
    "patch_loader",
    "predict_probabilities",
    "read_image",
    "read_label",
    "segment",
    "train",
    "training_subject",
    "write_image",
    "write_label",
    "write_mni152",
]
