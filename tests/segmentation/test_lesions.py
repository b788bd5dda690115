"""Lesions matched one to one: panoptic quality compared with MONAI, the table of lesions, and their places."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_panoptic_quality

from attn3d.segmentation import evaluate
from attn3d.segmentation.components import components
from attn3d.segmentation.lesions import QUALITIES, match_lesions, pooled
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (20, 16, 10)
AFFINE = AFFINES["oblique"]
MONAI = {"panoptic_quality": "pq", "recognition_quality": "rq", "segmentation_quality": "sq"}


def box(low, high):
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(*pair) for pair in zip(low, high, strict=True))] = True
    return mask


LARGE, SMALL, FALSE = box((2, 2, 2), (8, 7, 6)), box((12, 3, 1), (14, 5, 3)), box((15, 12, 7), (18, 14, 9))
LARGE_FOUND = box((2, 2, 2), (8, 7, 5))  # 90 of 120 voxels


def test_matched_missed_and_false_lesions():
    scores, rows = match_lesions(LARGE_FOUND | FALSE, LARGE | SMALL, AFFINE)
    assert scores == {
        "lesions_predicted": 2,
        "lesions_matched": 1,
        "recognition_quality": pytest.approx(1 / (1 + 0.5 + 0.5)),
        "segmentation_quality": pytest.approx(90 / 120),
        "lesion_dice": pytest.approx(2 * 90 / (90 + 120)),
        "panoptic_quality": pytest.approx(0.5 * 0.75),
    }
    assert [(row["of"], row["lesion"], row["matched"], row["dice"]) for row in rows] == [
        ("reference", 1, True, pytest.approx(180 / 210)),
        ("reference", 2, False, None),
        ("prediction", 2, False, None),
    ]
    for row, mask in zip(rows, (LARGE, SMALL, FALSE), strict=True):
        centre = nib.affines.apply_affine(AFFINE, np.argwhere(mask).mean(axis=0))
        assert [row[axis] for axis in ("x_mm", "y_mm", "z_mm")] == pytest.approx(centre.tolist())
        assert row["volume_ml"] == pytest.approx(mask.sum() * abs(np.linalg.det(AFFINE[:3, :3])) / 1000)


@pytest.mark.parametrize(
    ("found", "matched"), [(box((2, 2, 2), (8, 7, 4)), 0), (box((2, 2, 2), (8, 7, 4)) | box((2, 2, 4), (3, 3, 5)), 1)]
)
def test_an_iou_must_exceed_a_half_to_match(found, matched):
    assert match_lesions(found, LARGE, AFFINE)[0]["lesions_matched"] == matched


def test_without_lesions_nothing_is_missed():
    nothing = np.zeros(SHAPE, bool)
    scores, rows = match_lesions(nothing, nothing, AFFINE)
    assert (scores["panoptic_quality"], scores["recognition_quality"], rows) == (1.0, 1.0, [])
    assert (scores["segmentation_quality"], scores["lesion_dice"]) == (None, None)
    for found, true in ((nothing, LARGE), (LARGE, nothing)):
        scores, rows = match_lesions(found, true, AFFINE)
        assert (scores["panoptic_quality"], scores["segmentation_quality"], len(rows)) == (0.0, None, 1)


@pytest.mark.parametrize("seed", range(3))
def test_qualities_are_those_of_monai(seed):
    generator = np.random.default_rng(seed)
    true = np.kron(generator.random((8, 8, 6)) < 0.12, np.ones((4, 4, 4))) > 0
    found = np.where(generator.random(true.shape) < 0.1, ~true, true) & (np.arange(true.shape[0]) > 5)[:, None, None]
    scores, rows = match_lesions(found, true, AFFINE)
    pieces = [torch.from_numpy(components(mask)[0]) for mask in (found, true)]
    assert 0 < scores["lesions_matched"] < len(rows)
    for name, short in MONAI.items():
        assert scores[name] == pytest.approx(compute_panoptic_quality(*pieces, metric_name=short).item(), abs=1e-5)


def test_all_lesions_of_a_cohort_have_equal_weight():
    pairs = [(LARGE_FOUND | FALSE, LARGE | SMALL), (SMALL, SMALL), (FALSE, np.zeros(SHAPE, bool))]
    cases = []
    for found, true in pairs:
        scores, _ = match_lesions(found, true, AFFINE)
        cases.append(scores | {"lesions": int(components(true)[0].max())})
    assert pooled(cases) == {
        "lesions_predicted": 4,
        "lesions_matched": 2,
        "recognition_quality_pooled": pytest.approx(2 * 2 / (3 + 4)),
        "segmentation_quality_pooled": pytest.approx((0.75 + 1) / 2),
        "lesion_dice_pooled": pytest.approx((180 / 210 + 1) / 2),
        "panoptic_quality_pooled": pytest.approx((0.75 + 1) / 3.5),
    }


@pytest.fixture
def folders(tmp_path):
    """Predictions and references of two cases with two labels."""
    cases = {"a": (LARGE_FOUND + 2 * FALSE, LARGE + 2 * SMALL), "b": (0 * LARGE, 2 * SMALL)}
    for side, folder in enumerate(("predictions", "references")):
        (tmp_path / folder).mkdir()
        for name, pair in cases.items():
            nib.save(scan(pair[side].astype(np.uint8), AFFINE), tmp_path / folder / f"{name}.nii.gz")
    return tmp_path / "predictions", tmp_path / "references"


def test_evaluate_writes_a_row_for_each_lesion(folders, tmp_path):
    out = tmp_path / "scores"
    scores = evaluate(*folders, out, labels={1: "core", 2: "rim"}, lesions=True, quiet=True)
    assert json.loads((out / "scores.json").read_text()) == scores
    with (out / "lesions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"], row["of"], row["lesion"], row["matched"]) for row in rows] == [
        ("a", "core", "reference", "1", "True"),
        ("a", "rim", "reference", "1", "False"),
        ("a", "rim", "prediction", "1", "False"),
        ("a", "any label", "reference", "1", "True"),
        ("a", "any label", "reference", "2", "False"),
        ("a", "any label", "prediction", "2", "False"),
        ("b", "rim", "reference", "1", "False"),
        ("b", "any label", "reference", "1", "False"),
    ]
    with (out / "scores.csv").open() as file:
        table = {(row["case"], row["label"]): row for row in csv.DictReader(file)}
    assert float(table["a", "core"]["panoptic_quality"]) == 0.75
    assert table["b", "rim"]["segmentation_quality"] == ""
    assert float(table["all cases as one volume", "any label"]["recognition_quality"]) == pytest.approx(2 / (3 + 2))
    assert table["all cases as one volume", "rim"]["lesions_predicted"] == "1"
    assert table["mean of all cases", "rim"]["panoptic_quality"] == ""


def test_scores_without_lesions_remove_older_tables_of_lesions(folders, tmp_path):
    out = tmp_path / "scores"
    evaluate(*folders, out, lesions=True, quiet=True)
    scores = evaluate(*folders, out, overwrite=True, quiet=True)
    assert sorted(path.name for path in out.iterdir()) == ["scores.csv", "scores.json"]
    assert "lesions" not in scores
    assert not any(name in (out / "scores.csv").read_text() for name in QUALITIES)


def test_masks_of_other_numbers_than_one_are_accepted():
    """Such as 255, and values of which only some bits agree."""
    expected = match_lesions(LARGE_FOUND | FALSE, LARGE | SMALL, AFFINE)
    found, true = (LARGE_FOUND | FALSE).astype(np.uint8) * 2, (LARGE | SMALL).astype(np.uint8) * 255
    assert match_lesions(found, true, AFFINE) == expected
