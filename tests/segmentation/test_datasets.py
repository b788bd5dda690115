"""The published layouts of data sets are recognised, and files that do not fit are named."""

import json

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError, read_labels
from attn3d.segmentation.datasets import LAYOUTS, find_dataset, read_case_image, read_case_label
from tests.segmentation import layouts
from tests.segmentation.layouts import names

BLEEDS = {1: "EDH", 2: "IPH", 3: "IVH", 4: "SAH", 5: "SDH"}

# Writer: layout, names of the training and test cases, labels, modality, images per case.
PUBLISHED = {
    layouts.bhsd: ("BHSD", ["ID_1", "ID_2"], ["ID_3"], BLEEDS, "CT", 1),
    layouts.decathlon: ("Decathlon", ["spleen_1", "spleen_2"], ["spleen_3"], {1: "spleen"}, "CT", 1),
    layouts.nnunet: ("nnU-Net v2", ["BRATS_1", "BRATS_2"], ["BRATS_3"], {1: "oedema", 2: "tumour"}, "MRI", 2),
    layouts.instance2022: ("INSTANCE 2022", ["095", "096"], ["101"], {1: "ICH"}, "CT", 1),
    layouts.ct_ich: ("PhysioNet ct-ich", ["049", "050"], [], {1: "ICH"}, "CT", 1),
    layouts.mbh_seg: ("MBH-Seg", ["case_1", "case_2"], [], BLEEDS, "CT", 1),
    layouts.seg_cq500: ("Seg-CQ500", ["CQ500CT1", "CQ500CT2"], [], {1: "ICH"}, "CT", 1),
    layouts.pairs: ("image/label pairs", ["1", "2"], [], {3: "label 3"}, "unknown", 1),
    layouts.pairs_side_by_side: ("image/label pairs", ["1", "2"], [], {3: "label 3"}, "unknown", 1),
}


def test_each_layout_has_a_writer():
    written = {name for name, *_ in PUBLISHED.values()}
    assert written | {"DICOM"} == set(LAYOUTS)


@pytest.mark.parametrize("write", PUBLISHED, ids=lambda write: write.__name__)
def test_a_published_layout_is_found_and_read(tmp_path, write):
    layout, cases, test_cases, labels, modality, channels = PUBLISHED[write]
    write(tmp_path)
    dataset = find_dataset(tmp_path, labelled=True)
    assert (dataset.layout, dataset.labels.legend, dataset.modality) == (layout, labels, modality)
    assert (names(dataset.cases), names(dataset.test_cases)) == (cases, test_cases)
    assert not dataset.problems
    assert not dataset.simulated
    for case in dataset.cases + dataset.test_cases:
        images = read_case_image(case)
        assert len(images) == channels
        assert images[0].shape == layouts.SHAPE
        np.testing.assert_allclose(images[0].affine, layouts.AFFINE, atol=1e-5)
    for case in dataset.cases:
        label = read_case_label(case, dataset, read_case_image(case)[0])
        assert label.get_data_dtype() == np.uint8
        assert set(np.unique(label.dataobj)) == {0, *labels}


def test_the_training_folder_of_instance_is_a_data_set(tmp_path):
    layouts.instance2022(tmp_path)
    dataset = find_dataset(tmp_path / "train")
    assert dataset.layout == "INSTANCE 2022"
    assert names(dataset.cases) == ["095", "096"]


@pytest.mark.parametrize(
    ("write", "lost", "says", "left"),
    [
        (layouts.bhsd, "label_192/labelsTr/ID_2.nii.gz", "imagesTr/ID_2.nii.gz: has no label", ["ID_1"]),
        (layouts.bhsd, "label_192/imagesTr/ID_2.nii.gz", "labelsTr/ID_2.nii.gz: has no image", ["ID_1"]),
        (layouts.decathlon, "labelsTr/spleen_1.nii.gz", "in dataset.json, but does not exist", ["spleen_2"]),
        (layouts.nnunet, "imagesTr/BRATS_1_0001.nii.gz", "has the channels 0000, but needs 0000, 0001", ["BRATS_2"]),
        (layouts.nnunet, "labelsTr/BRATS_1.nii.gz", "imagesTr/BRATS_1_0000.nii.gz: has no label", ["BRATS_2"]),
        (layouts.instance2022, "train/label/096.nii.gz", "data/096.nii.gz: has no label", ["095"]),
        (layouts.ct_ich, "masks/050.nii", "ct_scans/050.nii: has no label", ["049"]),
        (layouts.mbh_seg, "case_1/image.nii.gz", "label_annot_1.nii.gz: has no image", ["case_2"]),
        (layouts.seg_cq500, "data/volumes/CQ500CT2/ICH_mask.nii.gz", "CT.nii: has no label", ["CQ500CT1"]),
        (layouts.pairs, "images/1.nii.gz", "labels/1.nii.gz: has no image", ["2"]),
        (layouts.pairs_side_by_side, "1_seg.nii.gz", "1.nii.gz: has no label", ["2"]),
    ],
)
def test_a_file_without_its_counterpart_is_named(tmp_path, write, lost, says, left):
    write(tmp_path)
    (tmp_path / lost).unlink()
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == left
    assert any(says in problem for problem in dataset.left_out)
    assert len({*dataset.left_out}) == len(dataset.left_out), "each once"
    for problem in dataset.left_out:
        assert problem in str(dataset)


def test_hidden_files_of_a_copy_are_not_scans(tmp_path):
    layouts.instance2022(tmp_path)
    (tmp_path / "train/data/._095.nii.gz").write_bytes(b"Mac OS X")
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == ["095", "096"]
    assert not dataset.problems


def test_a_folder_without_scans_or_without_pairs_is_refused(tmp_path):
    with pytest.raises(FileError, match="is not a folder"):
        find_dataset(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no scans here")
    with pytest.raises(FileError, match="has no NIfTI, NRRD, MHA or DICOM scans in a known layout: BHSD, Decathlon"):
        find_dataset(tmp_path)
    layouts.write(tmp_path / "a.nii.gz", layouts.units(1))
    assert names(find_dataset(tmp_path).test_cases) == ["a"]
    with pytest.raises(FileError, match="has the layout image/label pairs, but no image with a label"):
        find_dataset(tmp_path, labelled=True)
    layouts.write(tmp_path / "b_seg.nii.gz", layouts.marks(1))
    with pytest.raises(FileError, match=r"no image with a label, for example .*a.nii.gz: has no label"):
        find_dataset(tmp_path, labelled=True)


def test_a_duplicate_name_is_refused(tmp_path):
    layouts.instance2022(tmp_path)
    layouts.write(tmp_path / "train/data/095.nii", layouts.units(1))
    with pytest.raises(FileError, match="remove one of them"):
        find_dataset(tmp_path)
    layouts.decathlon(tmp_path / "listed")
    path = tmp_path / "listed/dataset.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"training": content["training"][:1] * 2}))
    with pytest.raises(FileError, match="has 2 cases with the name 'spleen_1'"):
        find_dataset(tmp_path / "listed")


def test_a_folder_of_dicom_is_images_to_predict(tmp_path):
    units, affine = layouts.dicom_series(tmp_path / "patient")
    for folder in (tmp_path, tmp_path / "patient"):
        dataset = find_dataset(folder)
        assert (dataset.layout, names(dataset.test_cases), dataset.cases) == ("DICOM", ["patient"], ())
        (image,) = read_case_image(dataset.test_cases[0])
        # The order of the slices may be reversed, but each voxel must keep its place in mm.
        at = np.indices(units.shape).reshape(3, -1).T
        found = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, at)
        np.testing.assert_allclose(found, np.rint(found), atol=1e-3)
        np.testing.assert_array_equal(image.get_fdata()[tuple(np.rint(found).astype(int).T)], units.ravel())
    with pytest.raises(FileError, match="has the layout DICOM, but no image with a label"):
        find_dataset(tmp_path, labelled=True)


def test_lists_of_a_decathlon_in_the_description_of_nnunet_are_not_used(tmp_path):
    """nnU-Net v2 does not read them either; they remain where a description was changed by hand."""
    pair = {"image": "./imagesTr/BRATS_1.nii.gz", "label": "./labelsTr/BRATS_1.nii.gz"}
    layouts.nnunet(tmp_path, training=[pair], test=[])
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, names(dataset.cases), dataset.problems) == ("nnU-Net v2", ["BRATS_1", "BRATS_2"], {})
    assert read_labels(tmp_path / "dataset.json") == dataset.labels


def test_a_data_set_of_nnunet_v1_is_recognised_by_its_names(tmp_path):
    layouts.decathlon(tmp_path)
    for file in tmp_path.glob("images*/*"):
        file.rename(file.with_name(file.name.replace(".nii.gz", "_0000.nii.gz")))
    with pytest.raises(FileError, match=r"spleen_1.nii.gz: .* does not exist; spleen_1_0000 does, as in nnU-Net v1"):
        find_dataset(tmp_path, labelled=True)


def test_data_and_label_are_instance_2022_where_the_scans_are_numbered(tmp_path):
    for part in ("data", "label"):
        layouts.write(tmp_path / part / "patient_one.nii.gz", layouts.marks(1, 2))
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.modality, dataset.labels.legend) == ("image/label pairs", "unknown", {1: "label 1"})


@pytest.mark.parametrize("write", PUBLISHED, ids=lambda write: write.__name__)
def test_every_layout_names_volumes_of_other_formats(tmp_path, write):
    write(tmp_path)
    image = find_dataset(tmp_path).cases[0].images[0]
    (image.parent / "other.mgz").write_bytes(b"")
    assert "is not NIfTI" in find_dataset(tmp_path).problems[str(image.parent / "other.mgz")]
