"""Labels, regions and ignored voxels: targets of training and written labels, which are those of nnU-Net."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from attn3d.segmentation import FileError, Labels, find_dataset, read_labels
from attn3d.segmentation.portable import choose_labels
from tests.segmentation import layouts

BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3, "ignore": 4}
REGIONS = Labels(("whole tumour", "tumour core", "enhancing"), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3), ignore=4)
# As in KiTS: the value of the second region marks its voxels outside the third, which are not a region.
KIDNEY = Labels(("kidney", "mass", "tumour"), ((1, 2, 3), (2, 3), (2,)), (1, 3, 2))
PLAIN = replace(Labels.of({7: "b", 2: "a"}), ignore=9)


def described(labels):
    """Labels in the form of a dataset.json."""
    return {"background": 0, **labels.as_dict()}, list(labels.regions_class_order) or None


def probabilities_of(channels, seed=0):
    """Random probabilities; some are exactly 0.5, and some are equal in two channels."""
    drawn = np.random.default_rng(seed).random((channels, 9, 8, 7), dtype=np.float32)
    drawn[:, 0], drawn[0, 1] = 0.5, drawn[1, 1]
    return drawn


@pytest.mark.parametrize("labels", [REGIONS, KIDNEY], ids=["BraTS", "KiTS"])
def test_regions_above_a_half_are_written_in_order(labels):
    found = probabilities_of(3)
    expected = np.zeros(found.shape[1:], np.uint8)
    for voxel in np.ndindex(expected.shape):
        for region in range(3):
            if found[(region, *voxel)] > 0.5:
                expected[voxel] = labels.regions_class_order[region]
    chosen = labels.choose(torch.from_numpy(found))
    assert chosen.dtype == torch.uint8
    np.testing.assert_array_equal(chosen, expected)
    assert set(np.unique(expected)) == {0, 1, 2, 3}


def test_the_most_probable_label_or_the_first_of_equals_is_written():
    found = probabilities_of(3)
    np.testing.assert_array_equal(PLAIN.choose(torch.from_numpy(found)), np.array([0, 2, 7])[found.argmax(axis=0)])


@pytest.mark.parametrize("labels", [REGIONS, KIDNEY, PLAIN, Labels.of({1: "a"})], ids=["BraTS", "KiTS", "plain", "one"])
def test_nnunet_writes_the_same_for_the_same_probabilities(labels):
    handling = pytest.importorskip(
        "nnunetv2.utilities.label_handling.label_handling", reason="nnU-Net is not installed: pip install nnunetv2"
    )
    named, order = described(labels)
    if not labels.regions:  # nnU-Net needs consecutive values, and gives class indices
        named = {name: index for index, name in enumerate(named)}
    manager = handling.LabelManager(named, order)
    logits = torch.randn(len(labels.channels), 9, 8, 7, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = 0
    assert manager.num_segmentation_heads == len(labels.channels)
    assert manager.has_regions == labels.regions
    assert manager.has_ignore_label == (labels.ignore is not None)
    probabilities = labels.probabilities(logits)
    torch.testing.assert_close(probabilities, manager.apply_inference_nonlin(logits))
    for found in (probabilities, torch.from_numpy(probabilities_of(len(labels.channels)))):
        theirs = manager.convert_probabilities_to_segmentation(found).numpy()
        theirs = theirs if labels.regions else np.array(labels.written)[theirs]
        np.testing.assert_array_equal(labels.choose(found), theirs)
        assert len(np.unique(theirs)) > 1


@pytest.mark.parametrize("labels", [REGIONS, KIDNEY, PLAIN], ids=["BraTS", "KiTS", "plain"])
def test_a_perfect_prediction_is_written_as_the_label(labels):
    """The targets are taken as probabilities; choosing labels from them gives the label again."""
    label = np.random.default_rng(0).choice([0, *labels.present], (2, 1, 4, 5, 6)).astype(np.uint8)
    targets = labels.targets(torch.from_numpy(label))
    if labels.regions:
        assert targets.shape == (2, 3, 4, 5, 6)
        for region, (_, mask) in enumerate(labels.masks(label[:, 0])):
            np.testing.assert_array_equal(targets[:, region], mask)
        probabilities = targets
    else:
        assert targets.shape == (2, 1, 4, 5, 6)
        np.testing.assert_array_equal(np.array(labels.written)[targets], label)
        probabilities = torch.zeros(2, 3, 4, 5, 6).scatter_(1, targets, 1.0)
    for one, expected in zip(probabilities, label[:, 0], strict=True):
        np.testing.assert_array_equal(labels.choose(one), expected)


def test_labels_are_sorted_by_value_and_regions_keep_their_order(tmp_path):
    layouts.nnunet(tmp_path, labels={"background": 0, "b": 2, "a": 1, "ignore": 3})
    labels = find_dataset(tmp_path).labels
    assert labels == replace(Labels.of({1: "a", 2: "b"}), ignore=3)
    assert (labels.channels, labels.written) == (("background", "a", "b"), (0, 1, 2))
    layouts.nnunet(tmp_path, labels=BRATS, regions_class_order=[1, 2, 3])
    dataset = find_dataset(tmp_path)
    assert dataset.labels == REGIONS
    assert REGIONS.channels == ("whole tumour", "tumour core", "enhancing")
    assert "regions 1+2+3 whole tumour, 2+3 tumour core, 3 enhancing; 4 is ignored" in str(dataset)
    assert {"background": 0} | REGIONS.as_dict() == BRATS
    assert REGIONS.readable == (0, 1, 2, 3, 4)


def test_a_list_of_one_value_is_a_label_whatever_the_order(tmp_path):
    layouts.nnunet(tmp_path, labels={"background": 0, "b": [2], "a": 1}, regions_class_order=[2, 1])
    assert find_dataset(tmp_path).labels == Labels.of({1: "a", 2: "b"})


def test_labels_are_read_from_a_file_or_a_folder(tmp_path):
    layouts.nnunet(tmp_path, labels=BRATS, regions_class_order=[1, 2, 3])
    assert read_labels(tmp_path) == read_labels(tmp_path / "dataset.json") == REGIONS
    layouts.decathlon(tmp_path / "spleen")
    assert read_labels(tmp_path / "spleen") == read_labels(tmp_path / "spleen" / "dataset.json")
    assert read_labels(tmp_path / "spleen" / "dataset.json") == Labels.of({1: "spleen"})
    for given in (["background", "spleen"], {"background": 0, "spleen": 1}):
        content = json.dumps({"labels": given, "training": []})
        (tmp_path / "wrong.json").write_text(content)
        with pytest.raises(FileError, match=r"wrong\.json: its `labels` must give the name of each value, got"):
            read_labels(tmp_path / "wrong.json")
    (tmp_path / "other.json").write_text(json.dumps({"cases": []}))
    with pytest.raises(FileError, match=r"other\.json: has no 'labels'"):
        read_labels(tmp_path / "other.json")
    with pytest.raises(FileError, match=r"nothing: does not exist; give a dataset\.json"):
        read_labels(tmp_path / "nothing")


def test_the_ignored_value_is_not_a_label():
    reference, prediction = np.array([0, 1, 4, 3, 4], np.uint8), np.array([1, 1, 3, 3, 0], np.uint8)
    found, true = REGIONS.compared(prediction, reference)
    assert (found.tolist(), true.tolist()) == ([1, 1, 0, 3, 0], [0, 1, 0, 3, 0])
    assert (found.dtype, true.dtype) == (np.uint8, np.uint8)
    assert {name: mask.tolist() for name, mask in REGIONS.masks(reference)} == {
        "whole tumour": [False, True, False, True, False],
        "tumour core": [False, False, False, True, False],
        "enhancing": [False, False, False, True, False],
    }
    assert REGIONS.legend == {1: "whole tumour", 2: "tumour core", 3: "enhancing"}
    assert KIDNEY.legend == {1: "kidney", 2: "tumour", 3: "mass"}


def test_a_region_must_be_above_a_half():
    assert choose_labels(torch.tensor([[0.5, 0.5000001]]), [3], regions=True).tolist() == [0, 3]


def test_values_of_numpy_become_numbers_for_json():
    assert json.dumps(Labels.of({np.uint8(2): "b", np.int64(1): "a"}).as_dict()) == '{"a": 1, "b": 2}'


@pytest.mark.parametrize("labels", [{"lesion": 1}, ["lesion"], {1.5: "lesion"}])
def test_labels_must_be_names_by_value(labels):
    with pytest.raises(TypeError, match=r"`labels` must be names by value, such as \{1: 'lesion'\}, got "):
        Labels.of(labels)
