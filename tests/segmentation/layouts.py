"""Writers of small data sets in each published layout."""

import json

import numpy as np

from attn3d.segmentation import write_image
from attn3d.segmentation.io.dicom import same_locale
from tests.segmentation.volumes import AFFINES, head

SHAPE = (8, 9, 5)
AFFINE = AFFINES["oblique"]
KINDS = {"background": 0, "EDH": 1, "IPH": 2, "IVH": 3, "SAH": 4, "SDH": 5}


def units(seed):
    return np.random.default_rng(seed).integers(-1000, 1500, SHAPE).astype(np.int16)


def marks(seed, values=6):
    """Labels with all of `values` values."""
    return (np.arange(np.prod(SHAPE)).reshape(SHAPE) + seed).astype(np.uint8) % values


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, data, AFFINE)


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def names(cases):
    return [case.name for case in cases]


def bhsd(folder):
    for part, number in (("Tr", 1), ("Tr", 2), ("Ts", 3)):
        write(folder / f"label_192/images{part}/ID_{number}.nii.gz", units(number))
        write(folder / f"label_192/labels{part}/ID_{number}.nii.gz", marks(number))


def decathlon(folder):
    for number in (1, 2):
        write(folder / f"imagesTr/spleen_{number}.nii.gz", units(number))
        write(folder / f"labelsTr/spleen_{number}.nii.gz", marks(number, 2))
    write(folder / "imagesTs/spleen_3.nii.gz", units(3))
    pairs = [
        {"image": f"./imagesTr/spleen_{number}.nii.gz", "label": f"./labelsTr/spleen_{number}.nii.gz"}
        for number in (1, 2)
    ]
    description = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}
    write_json(folder / "dataset.json", description | {"training": pairs, "test": ["./imagesTs/spleen_3.nii.gz"]})


def task04(folder, cases=5):
    """Writes nested balls with two labels as a Decathlon data set with the names and modality of Task04."""
    pairs = []
    for number in range(1, cases + 1):
        image, labels = head(AFFINES["RAS"], 40, seed=number)
        pair = {part: f"./{part}sTr/hippocampus_{number:03d}.nii.gz" for part in ("image", "label")}
        for path in pair.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        write_image(folder / pair["image"], image, AFFINES["RAS"])
        write_image(folder / pair["label"], np.maximum(labels, 1) - 1, AFFINES["RAS"])
        pairs.append(pair)
    description = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "Anterior", "2": "Posterior"}}
    (folder / "dataset.json").write_text(json.dumps(description | {"training": pairs, "test": []}))


def nnunet(folder, **changes):
    for number in (1, 2):
        for channel in (0, 1):
            write(folder / f"imagesTr/BRATS_{number}_{channel:04d}.nii.gz", units(10 * number + channel))
        write(folder / f"labelsTr/BRATS_{number}.nii.gz", marks(number, 3))
    for channel in (0, 1):
        write(folder / f"imagesTs/BRATS_3_{channel:04d}.nii.gz", units(30 + channel))
    description = {
        "channel_names": {"0": "T1", "1": "FLAIR"},
        "labels": {"background": 0, "oedema": 1, "tumour": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", description | changes)


def instance2022(folder):
    for name in ("095", "096"):
        write(folder / f"train/data/{name}.nii.gz", units(int(name)))
        write(folder / f"train/label/{name}.nii.gz", marks(int(name), 2))
    write(folder / "evaluation/101.nii.gz", units(101))


def ct_ich(folder):
    for name in ("049", "050"):
        write(folder / f"ct_scans/{name}.nii", units(int(name)))
        write(folder / f"masks/{name}.nii", marks(int(name), 2).astype(np.float32) * 0.99607843)
    (folder / "patient_demographics.csv").write_text("Patient Number,Age\n49,40\n")


def mbh_seg(folder):
    for number in (1, 2):
        write(folder / f"case_{number}/image.nii.gz", units(number))
        for rater in range(1, 4):
            write(folder / f"case_{number}/label_annot_{rater}.nii.gz", marks(number + (rater == 3)))


def seg_cq500(folder):
    for number in (1, 2):
        write(folder / f"data/volumes/CQ500CT{number}/CT.nii", units(number))
        write(folder / f"data/volumes/CQ500CT{number}/ICH_mask.nii.gz", marks(number, 2))


def pairs(folder):
    for number in (1, 2):
        write(folder / f"images/{number}.nii.gz", units(number))
        write(folder / f"labels/{number}.nii.gz", 3 * marks(number, 2))


def pairs_side_by_side(folder):
    for number in (1, 2):
        write(folder / f"{number}.nii.gz", units(number))
        write(folder / f"{number}_seg.nii.gz", 3 * marks(number, 2))


@same_locale()  # GDCM's writer changes the locale
def dicom_series(folder, affine=None, skip=None):
    """Writes a CT series with one slice per file, as scanners do: rescaled, with left and back as positive axes.

    Args:
        folder: the folder to write to.
        affine: from voxel indices to millimetres in NIfTI's axes; its columns must be orthogonal, as DICOM requires.
        skip: the index of a missing slice.

    Returns:
        The HU and their affine.
    """
    import SimpleITK as sitk

    affine = AFFINE if affine is None else affine
    data = units(7)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    to_lps = np.diag([-1.0, -1.0, 1.0])
    direction = to_lps @ affine[:3, :3] / spacing
    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(data.shape[2]):
        if index == skip:
            continue
        image = sitk.GetImageFromArray(data[:, :, index].T)  # the writer subtracts the intercept
        image.SetSpacing(spacing[:2].tolist())
        corner = to_lps @ (affine @ (0, 0, index, 1))[:3]
        tags = {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.3.4.{index + 1}",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0013": str(index + 1),
            "0020|0032": "\\".join(f"{number:.6f}" for number in corner),
            "0020|0037": "\\".join(f"{number:.8f}" for number in direction[:, :2].T.ravel()),
            "0018|0050": f"{spacing[2]:.6f}",
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"IM{index:03d}.dcm"))
        writer.Execute(image)
    return data, affine


def change_header(path, **values):
    """Sets elements of the header of a DICOM file, or removes those that are None."""
    import pydicom

    header = pydicom.dcmread(path)
    for name, value in values.items():
        if value is None:
            header.pop(name, None)
        else:
            setattr(header, name, value)
    header.save_as(path)
    return header
