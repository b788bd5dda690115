"""Calibration of probabilities: compared with MONAI, TorchMetrics and scikit-learn, and its files."""

import itertools
import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import CalibrationErrorMetric
from scipy import ndimage
from scipy.special import entr, softmax
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from attn3d.segmentation import FileError, evaluate, write_image
from attn3d.segmentation.calibration import MARGIN, Calibration, calibration_near, summarise_calibration
from attn3d.segmentation.labels import Labels
from tests.segmentation.volumes import AFFINES, affine_of, rotation, scan

AFFINE = AFFINES["LAS, 5 mm slices"]
SHAPE = (24, 20, 8)
LABELS = {1: "core", 2: "rim"}


def voxels(seed, count=4000, classes=3, sharpness=3.0):
    """Overconfident probabilities, and the true classes."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(count, classes))
    true = [generator.choice(classes, p=one) for one in softmax(logits / 2, axis=1)]
    return softmax(logits, axis=1).astype(np.float32), np.array(true)


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_that_of_torchmetrics_and_monai(seed):
    probabilities, true = voxels(seed)
    right = probabilities.argmax(1) == true
    error = Calibration.of(probabilities, right).scores()["expected_calibration_error"]
    assert error > 0.05
    tensors = torch.from_numpy(probabilities), torch.from_numpy(true)
    assert error == pytest.approx(multiclass_calibration_error(*tensors, 3, n_bins=15).item(), abs=1e-6)
    metric = CalibrationErrorMetric(15, right=True)
    metric(torch.from_numpy(probabilities.max(1))[None, None], torch.from_numpy(right)[None, None].float())
    assert error == pytest.approx(metric.aggregate().item(), abs=1e-6)


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 30.0])
def test_the_area_is_that_of_scikit_learn(sharpness):
    probabilities, true = voxels(5, sharpness=sharpness)
    wrong = probabilities.argmax(1) != true
    area = roc_auc_score(wrong, entr(probabilities).sum(1))
    assert Calibration.of(probabilities, ~wrong).scores()["error_auc"] == pytest.approx(area, abs=2e-4)


def test_scores_equal_those_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.45, 0.55], [0.0, 1.0]], np.float32)
    right = np.array([True, False, False, True, True])
    scores = Calibration.of(probabilities, right).scores()
    assert scores == {
        "voxels": 5,
        "voxels_wrong": 2,
        # 0.9 twice, one of them right; each of the others has its own bin
        "expected_calibration_error": pytest.approx((abs(1 - 1.8) + 0.65 + 0.45 + 0) / 5),
        # Entropies: of 0.9 and 0.65 if wrong; of 0.9, 0.55 and 1 if right. In 3 of 6 pairs the wrong is higher; 1 tie
        "error_auc": pytest.approx((0.5 + 0 + 1 + 1 + 0 + 1) / 6),
    }


def test_no_area_if_all_or_none_are_wrong():
    probabilities, _ = voxels(0, count=10)
    for right in (np.ones(10, bool), np.zeros(10, bool)):
        assert Calibration.of(probabilities, right).scores()["error_auc"] is None


def test_parts_add_up_to_all_voxels():
    probabilities, true = voxels(1)
    right = probabilities.argmax(1) == true
    parts = [Calibration.of(probabilities[part], right[part]) for part in (slice(1000), slice(1000, None))]
    whole = Calibration.of(probabilities, right)
    assert summarise_calibration(dict(enumerate(parts)))["overall"] == pytest.approx(whole.scores(), rel=1e-12)
    reliability = whole.reliability()
    assert sum(row["voxels"] for row in reliability) == 4000
    assert reliability[0] == {"voxels": 0, "confidence": None, "accuracy": None}
    assert all((m - 1) / 15 < row["confidence"] <= m / 15 for m, row in enumerate(reliability, 1) if row["voxels"])


@pytest.fixture
def folders(tmp_path):
    """Predictions with probabilities, and references, of a case with labels and a case without."""
    predictions, references = tmp_path / "predictions", tmp_path / "references"
    predictions.mkdir()
    references.mkdir()
    ball = np.linalg.norm((np.moveaxis(np.indices(SHAPE), 0, -1) - (8, 8, 4)) * (1, 1, 2), axis=-1)
    for name, far in (("a", 0), ("b", 100)):
        generator = np.random.default_rng(far)
        logits = np.stack([ball + far - 4, 5 - ball, 0 * ball], axis=-1) + 2 * generator.normal(size=(*SHAPE, 3))
        logits[..., 0] += far
        probabilities = softmax(logits, axis=-1).astype(np.float32)
        true = (ball < 5).astype(np.uint8) + (ball < 3) if not far else np.zeros(SHAPE, np.uint8)
        write_image(predictions / f"{name}_probabilities.nii.gz", probabilities, AFFINE, "scanner")
        nib.save(scan(probabilities.argmax(-1).astype(np.uint8), AFFINE), predictions / f"{name}.nii.gz")
        nib.save(scan(true, AFFINE), references / f"{name}.nii.gz")
    return predictions, references


def near(folders, name):
    """Probabilities within the margin of labelled voxels, and whether the labels are right, by brute force."""
    found, true = (np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for folder in folders)
    where = np.argwhere(np.ones(SHAPE)) @ AFFINE[:3, :3].T
    labelled = where[((found > 0) | (true > 0)).ravel()]
    within = np.array([np.linalg.norm(labelled - one, axis=1).min() <= MARGIN + 1e-9 for one in where])
    probabilities = nib.load(folders[0] / f"{name}_probabilities.nii.gz").get_fdata(dtype=np.float32)
    return probabilities.reshape(-1, 3)[within], (found == true).ravel()[within]


def test_only_voxels_near_labelled_ones_count(folders, tmp_path):
    out = tmp_path / "scores"
    scores = evaluate(*folders, out, labels=LABELS, probabilities=True, quiet=True)
    assert json.loads((out / "scores.json").read_text()) == scores
    calibration = scores["calibration"]
    probabilities, right = near(folders, "a")
    assert 0 < len(right) < np.prod(SHAPE)
    assert calibration["cases"]["a"] == Calibration.of(probabilities, right).scores()
    assert 0.5 < calibration["cases"]["a"]["error_auc"] < 1
    assert calibration["cases"]["b"] == {
        "voxels": 0,
        "voxels_wrong": 0,
        "expected_calibration_error": None,
        "error_auc": None,
    }
    assert calibration["overall"] == calibration["cases"]["a"]
    assert (calibration["margin_mm"], len(calibration["reliability"])) == (5.0, 15)
    assert (out / "calibration.png").read_bytes().startswith(b"\x89PNG")
    assert scores["failed"] == {}, "files of probabilities must not count as predictions"
    evaluate(*folders, out, labels=LABELS, overwrite=True, quiet=True)
    assert sorted(path.name for path in out.iterdir()) == ["scores.csv", "scores.json"]


def test_a_slice_at_exactly_the_margin_counts_in_every_orientation(tmp_path):
    """Affines in files are single precision, so that slices of 5 mm are a little thicker or thinner."""
    labels, sizes = np.zeros((12, 10, 5), np.uint8), (2.0, 2.0, MARGIN)
    labels[5:8, 4:7, 2] = 1
    expected = int((ndimage.distance_transform_edt(labels == 0, sampling=sizes) <= MARGIN).sum())
    for angle in np.linspace(0.1, 1.2, 6):
        affine = affine_of(rotation(angle, 2 * angle) @ np.diag(sizes)).astype(np.float32).astype(float)
        probabilities = scan(np.full((*labels.shape, 2), 0.5, np.float32), affine)
        found = calibration_near(labels, labels, probabilities, affine, tmp_path, range(2, 3))
        assert found.scores()["voxels"] == expected


def test_ignored_voxels_do_not_count(folders):
    """They are not scored, do not count as labelled for the margin, and are not part of lesions."""
    file = folders[1] / "a.nii.gz"
    true = np.asarray(nib.load(file).dataobj).copy()
    found = np.asarray(nib.load(folders[0] / "a.nii.gz").dataobj)
    probabilities = nib.load(folders[0] / "a_probabilities.nii.gz").get_fdata(dtype=np.float32)
    true[:8] = 7
    assert (found[:8] > 0).any()
    nib.save(scan(true, AFFINE), file)
    labelled = ((found > 0) | (true > 0)) & (true != 7)
    distance = ndimage.distance_transform_edt(~labelled, sampling=nib.affines.voxel_sizes(AFFINE))
    counted = (distance <= MARGIN) & (true != 7)
    labels = replace(Labels.of(LABELS), ignore=7)
    scores = evaluate(*folders, labels=labels, probabilities=True, lesions=True, quiet=True)
    expected = Calibration.of(probabilities[counted], (found == true)[counted]).scores()
    assert scores["calibration"]["cases"]["a"] == expected
    components = ndimage.label((found > 0) & (true != 7), np.ones((3, 3, 3)))[1]
    assert scores["cases"]["a"]["any label"]["lesions_predicted"] == components


def test_regions_have_no_calibration(folders):
    with pytest.raises(ValueError, match="`probabilities` are for labels, got regions"):
        evaluate(*folders, labels=Labels(("all", "core"), ((1, 2), (1,)), (2, 1)), probabilities=True, quiet=True)


@pytest.mark.parametrize("sides", [[0], [1], [0, 1]], ids=["predictions", "references", "both"])
def test_images_of_uncertainty_are_not_segmentations(sides, folders):
    for what, side in itertools.product(("entropy", "spread"), sides):
        nib.save(scan(np.zeros(SHAPE, np.float32), AFFINE), folders[side] / f"a_{what}.nii.gz")
    nib.save(scan(np.zeros(SHAPE, np.uint8), AFFINE), folders[0] / "c_entropy.nii.gz")
    scores = evaluate(*folders, quiet=True)
    assert [path.rpartition("/")[2] for path in scores["failed"]] == ["c_entropy.nii.gz"]
    assert not {"a_entropy", "a_spread"} & scores["cases"].keys()


def test_probabilities_that_cannot_be_used_are_named(folders):
    predictions, references = folders
    file = predictions / "a_probabilities.nii.gz"
    image = nib.load(file)
    values = image.get_fdata(dtype=np.float32)
    at_label = tuple(np.argwhere(np.asarray(nib.load(predictions / "a.nii.gz").dataobj))[0])
    not_finite, off = values.copy(), values.copy()
    not_finite[at_label] = np.nan
    off[at_label] = (1.2, -0.2, 0.0)
    moved = AFFINE.copy()
    moved[0, 3] += 3
    for content, affine, problem in (
        (not_finite, AFFINE, "sum to 1"),
        (off, AFFINE, "sum to 1"),
        (values * 0.9, AFFINE, "sum to 1"),
        (values, moved, "off the grid of its labels"),
        (values[..., 0], AFFINE, "must be a 4-D file of several volumes"),
        (values[:-1], AFFINE, "it has shape"),
        (
            values[..., [0, 1, 2, 2]] / 2,
            AFFINE,
            "has probabilities of 4 classes, but the background and the labels are 3",
        ),
        (values[..., :2], AFFINE, "has probabilities of 2 classes, but the background and the labels are 3"),
    ):
        write_image(file, content, affine, "scanner")
        failed = evaluate(predictions, references, labels=LABELS, probabilities=True, quiet=True)["failed"]
        assert list(failed) == [str(file)]
        assert problem in failed[str(file)]
    file.unlink()
    failed = evaluate(predictions, references, labels=LABELS, probabilities=True, quiet=True)["failed"]
    assert "attn3d predict --probabilities" in failed[str(file)]
    (predictions / "b_probabilities.nii.gz").unlink()
    with pytest.raises(FileError, match=r"2 files cannot be used: .*a_probabilities.nii.gz: does not exist.*b_prob"):
        evaluate(predictions, references, labels=LABELS, probabilities=True, quiet=True)


@pytest.mark.parametrize("name", AFFINES)
def test_voxels_at_the_border_of_the_scan_count(name, tmp_path):
    """The same number of voxels as in scipy's distance transform of the whole volume."""
    mask = np.zeros((9, 8, 7), np.uint8)
    mask[0, :2, 5:] = 1
    probabilities = np.stack([1 - 0.8 * mask, 0.8 * mask], axis=-1).astype(np.float32)
    write_image(tmp_path / "case_probabilities.nii.gz", probabilities, AFFINES[name])
    for file in ("case", "reference"):
        nib.save(scan(mask, AFFINES[name]), tmp_path / f"{file}.nii.gz")
    scores = evaluate(tmp_path / "case.nii.gz", tmp_path / "reference.nii.gz", probabilities=True, quiet=True)
    distance = ndimage.distance_transform_edt(mask == 0, sampling=nib.affines.voxel_sizes(AFFINES[name]))
    assert scores["calibration"]["overall"]["voxels"] == (distance <= MARGIN).sum()


def test_a_network_may_have_labels_that_do_not_occur(folders):
    """If the labels are those that occur in the files, the probabilities may have more classes, but not fewer."""
    file = folders[0] / "a_probabilities.nii.gz"
    values = nib.load(file).get_fdata(dtype=np.float32)
    expected = evaluate(*folders, probabilities=True, quiet=True)["calibration"]["cases"]["a"]
    write_image(file, np.pad(values, [(0, 0)] * 3 + [(0, 1)]), AFFINE, "scanner")
    assert evaluate(*folders, probabilities=True, quiet=True)["calibration"]["cases"]["a"] == expected
    write_image(file, values[..., :2], AFFINE, "scanner")
    failed = evaluate(*folders, probabilities=True, quiet=True)["failed"]
    assert "has probabilities of 2 classes, but the background and the labels are at least 3" in failed[str(file)]
