import json

import nibabel as nib
import numpy as np
import pytest

from attn3d.segmentation import FileError
from attn3d.segmentation.datasets import LAYOUTS, find_dataset, read_case_image, read_case_label, split_cases
from tests.segmentation import layouts

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


def names(cases):
    return [case.name for case in cases]


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


def test_channels_are_in_order(tmp_path):
    layouts.nnunet(tmp_path)
    first, second = read_case_image(find_dataset(tmp_path).cases[1])
    np.testing.assert_array_equal(first.get_fdata(), layouts.units(20))
    np.testing.assert_array_equal(second.get_fdata(), layouts.units(21))


def test_masks_with_other_values_are_thresholded(tmp_path):
    layouts.ct_ich(tmp_path)
    dataset = find_dataset(tmp_path)
    label = read_case_label(dataset.cases[0], dataset, read_case_image(dataset.cases[0])[0])
    np.testing.assert_array_equal(label.dataobj, layouts.marks(49, 2))


@pytest.mark.parametrize(
    ("votes", "elected"),
    [((1, 1, 2), 1), ((0, 4, 4), 4), ((0, 0, 5), 0), ((1, 2, 3), 1), ((0, 3, 5), 0), ((5, 5, 5), 5)],
)
def test_the_majority_of_raters_or_else_the_smaller_value_wins(tmp_path, votes, elected):
    layouts.mbh_seg(tmp_path)
    for rater, value in enumerate(votes, start=1):
        layouts.write(tmp_path / f"case_1/label_annot_{rater}.nii.gz", np.full(layouts.SHAPE, value, np.uint8))
    dataset = find_dataset(tmp_path)
    case = dataset.cases[0]
    assert len(case.label) == 3
    label = read_case_label(case, dataset, read_case_image(case)[0])
    assert (np.asarray(label.dataobj) == elected).all()


def test_a_patient_without_haemorrhage_is_a_case(tmp_path):
    layouts.instance2022(tmp_path)
    layouts.write(tmp_path / "train/label/095.nii.gz", np.zeros(layouts.SHAPE, np.uint8))
    dataset = find_dataset(tmp_path)
    label = read_case_label(dataset.cases[0], dataset, read_case_image(dataset.cases[0])[0])
    assert not np.asarray(label.dataobj).any()


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


def test_files_that_a_description_does_not_list_are_named(tmp_path):
    layouts.decathlon(tmp_path)
    layouts.write(tmp_path / "imagesTr/spleen_9.nii.gz", layouts.units(9))
    assert find_dataset(tmp_path).problems == {str(tmp_path / "imagesTr/spleen_9.nii.gz"): "is not in dataset.json"}
    layouts.nnunet(tmp_path / "second")
    layouts.write(tmp_path / "second/imagesTr/BRATS_1_0002.nii.gz", layouts.units(9))
    dataset = find_dataset(tmp_path / "second")
    assert names(dataset.cases) == ["BRATS_2"], "a case must have exactly its channels"
    assert any("0000, 0001, 0002, but needs 0000, 0001" in problem for problem in dataset.left_out)


def test_labels_above_the_range_of_uint8_are_refused(tmp_path):
    layouts.nnunet(tmp_path, labels={"background": 0, "a": 300})
    with pytest.raises(FileError, match=r"`labels` must have values from 1 to 255, got 300; map them"):
        find_dataset(tmp_path)


def test_hidden_files_of_a_copy_are_not_scans(tmp_path):
    layouts.instance2022(tmp_path)
    (tmp_path / "train/data/._095.nii.gz").write_bytes(b"Mac OS X")
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == ["095", "096"]
    assert not dataset.problems


REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3}
UPSIDE_DOWN = {"background": 0, "active": 3, "core": [2, 3], "whole": [1, 2, 3]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": {"a": 1}}, "`background` 0"),
        ({"labels": {"background": 1, "a": 2}}, "must name the values, with `background` 0"),
        ({"labels": {"background": [0], "a": 2}}, "must name the values, with `background` 0"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "give 1 two names"),
        ({"labels": {"background": 0, "a": "1"}}, "must give 'a' a whole number, or a region a list of them, got '1'"),
        ({"labels": {"background": 0, "a": [1, "2"]}}, r"must give 'a' a whole .* got \[1, '2'\]"),
        ({"labels": {"background": 0, "a": True}}, "must give 'a' a whole number"),
        ({"labels": {"background": 0, "a": [1, 1], "b": 2}}, r"give 'a' the values \[1, 1\]; name"),
        ({"labels": {"background": 0, "a": [], "b": 2}}, r"give 'a' the values \[\]; name at least one"),
        ({"labels": {"background": 0, "a": [0, 1]}}, "values from 1 to 255, got 0; map"),
        ({"labels": {"background": 0, "any label": [1, 2], "b": 2}}, "its own name, other than 'any label'"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "`ignore` must be the highest value, above 1 .* got 1"),
        ({"labels": {"background": 0, "a": 3, "ignore": 2}}, "`ignore` must be the highest value, above 3 .* got 2"),
        ({"labels": {"background": 0, "a": 3, "ignore": 256}}, "up to 255, got 256"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2]}}, r"give `ignore` one whole number, got \[2\]"),
        ({"labels": REGIONS}, "gives? 'whole' several values, which needs `regions_class_order`: .* 3 regions"),
        (
            {"labels": REGIONS, "regions_class_order": [1, 2]},
            r"have 3 values, .*whole, core, active, got \[1, 2\]",
        ),
        ({"labels": REGIONS, "regions_class_order": 3}, "must be a list of whole numbers, got 3"),
        ({"labels": REGIONS, "regions_class_order": [1, 2, "3"]}, "must be a list of whole numbers"),
        (
            {"labels": REGIONS, "regions_class_order": [1, 2, 1]},
            "writes 1 for 'active', which is not one of",
        ),
        (
            {"labels": REGIONS, "regions_class_order": [3, 2, 3]},
            "writes 3 for 'whole', but 'active' overwrites",
        ),
        ({"labels": UPSIDE_DOWN, "regions_class_order": [3, 2, 1]}, "writes 3 for 'active', but 'whole' overwrites"),
        ({"file_ending": ".mgz"}, "`file_ending` is '.mgz'; convert"),
        ({"channel_names": []}, "`channel_names` must name"),
    ],
)
def test_unsupported_descriptions_of_nnunet_are_refused_with_the_reason(tmp_path, changes, says):
    layouts.nnunet(tmp_path, **changes)
    with pytest.raises(FileError, match=says) as error:
        find_dataset(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "dataset.json"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object, got list"),
        ('{"training": []}', "does not have the form of the Decathlon"),
        ('{"modality": {"0": "CT"}, "labels": {"a": 1}, "training": []}', "`labels` must give the name of each value"),
        ('{"modality": {}, "labels": {"0": "no"}, "training": []}', "`modality` is empty"),
        ('{"modality": {"0": "CT"}, "labels": {"0": "no"}, "training": []}', "no image with a label"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path, content, says):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(FileError, match=says) as error:
        find_dataset(tmp_path)
    assert "\n" not in str(error.value)


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


def test_a_channel_may_have_its_axes_in_another_order(tmp_path):
    layouts.nnunet(tmp_path)
    case = find_dataset(tmp_path).cases[0]
    expected = read_case_image(case)
    nib.save(expected[1].as_reoriented([[2, 1], [0, -1], [1, 1]]), case.images[1])
    for one, other in zip(read_case_image(case), expected, strict=True):
        np.testing.assert_array_equal(one.dataobj, other.dataobj)
        np.testing.assert_allclose(one.affine, other.affine)


def test_a_channel_off_the_grid_and_an_unknown_value_are_refused(tmp_path):
    layouts.nnunet(tmp_path)
    dataset = find_dataset(tmp_path)
    case = dataset.cases[0]
    image = read_case_image(case)[0]
    layouts.write(case.label[0], layouts.marks(0, 4))
    with pytest.raises(FileError, match="value 3; map its values to 0, 1, 2"):
        read_case_label(case, dataset, image)
    layouts.write(case.images[1], layouts.units(1)[1:])
    with pytest.raises(FileError, match="resample it to that grid") as error:
        read_case_image(case)
    assert str(error.value).startswith(str(case.images[1]))
    assert f"but {case.images[0]} has" in error.value.problem
    with pytest.raises(FileError, match="has no label"):
        read_case_label(dataset.test_cases[0], dataset, image)


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


@pytest.mark.parametrize("second", ["1_label.nii.gz", "1_mask.nii", "1_mask.NII.GZ"])
def test_two_labels_of_one_scan_are_refused_with_both_names(tmp_path, second):
    layouts.pairs_side_by_side(tmp_path)
    (tmp_path / second).write_bytes((tmp_path / "1_seg.nii.gz").read_bytes())
    with pytest.raises(FileError, match=r"1_(seg|mask|label).*is a second label of '1', in addition to 1_") as error:
        find_dataset(tmp_path)
    assert second in str(error.value)
    assert "1_seg.nii.gz" in str(error.value)


def test_two_folders_of_labels_are_refused_with_both_names(tmp_path):
    layouts.pairs(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(FileError, match="has images/ with labels/ and images/ with masks/"):
        find_dataset(tmp_path)


def test_data_and_label_are_instance_2022_where_the_scans_are_numbered(tmp_path):
    for part in ("data", "label"):
        layouts.write(tmp_path / part / "patient_one.nii.gz", layouts.marks(1, 2))
    dataset = find_dataset(tmp_path)
    assert (dataset.layout, dataset.modality, dataset.labels.legend) == ("image/label pairs", "unknown", {1: "label 1"})


def test_endings_in_capitals_are_read_and_other_formats_named(tmp_path):
    layouts.pairs(tmp_path)
    (tmp_path / "images/1.nii.gz").rename(tmp_path / "images/1.NII.GZ")
    (tmp_path / "images/3.mgz").write_bytes(b"")
    dataset = find_dataset(tmp_path)
    assert names(dataset.cases) == ["1", "2"]
    assert read_case_image(dataset.cases[0])[0].shape == layouts.SHAPE
    problem = "is not NIfTI, NRRD or MHA; convert it to .nii.gz"
    assert dataset.problems == {str(tmp_path / "images/3.mgz"): problem}


@pytest.mark.parametrize("write", PUBLISHED, ids=lambda write: write.__name__)
def test_every_layout_names_volumes_of_other_formats(tmp_path, write):
    write(tmp_path)
    image = find_dataset(tmp_path).cases[0].images[0]
    (image.parent / "other.mgz").write_bytes(b"")
    assert "is not NIfTI" in find_dataset(tmp_path).problems[str(image.parent / "other.mgz")]


def test_the_cases_that_a_decathlon_validates_on_are_held_out(tmp_path):
    layouts.decathlon(tmp_path)
    layouts.write(tmp_path / "imagesTr/spleen_4.nii.gz", layouts.units(4))
    layouts.write(tmp_path / "labelsTr/spleen_4.nii.gz", layouts.marks(4, 2))
    path = tmp_path / "dataset.json"
    pair = {"image": "./imagesTr/spleen_4.nii.gz", "label": "./labelsTr/spleen_4.nii.gz"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"validation": [pair]}))
    dataset = find_dataset(tmp_path)
    assert not dataset.problems
    assert dataset.validation == ("spleen_4",)
    assert "1 of the cases with labels are defined as validation cases" in str(dataset)
    training, validation = split_cases(dataset.cases, 0.2, 0, dataset.validation)
    assert (names(training), names(validation)) == (["spleen_1", "spleen_2"], ["spleen_4"])
    with pytest.raises(ValueError, match="`validation` names all 3 cases"):
        split_cases(dataset.cases, validation=names(dataset.cases))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            '{"0": "background", "1": "lesion", "2": "lesion"}',
            r"'lesion' for \[\[1\], \[2\]\]; give each label its own name",
        ),
        (
            '{"0": "background", "1": "any label"}',
            r"'any label' for \[\[1\]\]; give each label its own name",
        ),
        ('{"0": "background", "1": "a", "1": "b"}', "dataset.json: is not valid JSON: the key '1' is repeated"),
    ],
)
def test_labels_with_the_same_name_are_refused(tmp_path, labels, says):
    layouts.decathlon(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('{"0": "background", "1": "spleen"}', labels))
    with pytest.raises(FileError, match=says):
        find_dataset(tmp_path)
