"""The published layouts, a file each: what its folder looks like and what its labels mean.

A layout is a function of a folder that gives a `Dataset`, or None where the folder is another's. To read a further
one, write its file and add it here; the first that knows a folder reads it.
"""

from attn3d.segmentation.datasets.layouts import (
    bhsd,
    ct_ich,
    decathlon,
    dicom,
    instance2022,
    mbh_seg,
    nnunet,
    pairs,
    seg_cq500,
)

LAYOUTS = {
    "BHSD": bhsd.find,
    "Decathlon": decathlon.find,
    "nnU-Net v2": nnunet.find,
    "INSTANCE 2022": instance2022.find,
    "PhysioNet ct-ich": ct_ich.find,
    "MBH-Seg": mbh_seg.find,
    "Seg-CQ500": seg_cq500.find,
    "image/label pairs": pairs.find,
    "DICOM": dicom.find,
}
