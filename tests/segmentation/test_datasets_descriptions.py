"""The descriptions of data sets, `dataset.json` of nnU-Net v2 and of the Decathlon."""

import json

import pytest

from attn3d.segmentation import FileError
from attn3d.segmentation.datasets import find_dataset, split_cases
from tests.segmentation import layouts
from tests.segmentation.layouts import names


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
