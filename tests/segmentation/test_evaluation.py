import numpy as np
import pytest

from attn3d.segmentation import evaluate

SPACING = (1.0, 1.0, 5.0)
AFFINE = np.diag([-1.0, 1.0, 5.0, 1.0])
SHAPE = (20, 16, 10)


def box(low, high):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(*pair) for pair in zip(low, high, strict=True))] = 1
    return labels


BOX = box((4, 4, 3), (10, 9, 7))
NOTHING = np.zeros(SHAPE, np.uint8)
DIAGONAL = np.sqrt(20**2 + 16**2 + 50**2)


def score(prediction, reference, **options):
    return evaluate(prediction, reference, AFFINE, {1: "lesion"}, **options)["lesion"]


def test_a_perfect_segmentation():
    assert score(BOX, BOX) == {
        "dice": 1.0,
        "hd95_mm": 0.0,
        "surface_dice": 1.0,
        "volume_ml": pytest.approx(0.6),  # 6 x 5 x 4 voxels of 5 mm³
        "reference_ml": pytest.approx(0.6),
    }


@pytest.mark.parametrize(("prediction", "reference"), [(NOTHING, BOX), (BOX, NOTHING)], ids=["missed", "false"])
def test_a_missed_label_and_a_false_alarm_get_the_worst_scores(prediction, reference):
    scores = score(prediction, reference)
    assert scores["dice"] == 0.0
    assert scores["surface_dice"] == 0.0
    assert scores["hd95_mm"] == pytest.approx(DIAGONAL)
    assert scores["volume_ml"] == pytest.approx(0.6 * prediction.any())
    assert scores["reference_ml"] == pytest.approx(0.6 * reference.any())


def test_rightly_finding_nothing_is_the_best_score():
    assert score(NOTHING, NOTHING) == {
        "dice": 1.0,
        "hd95_mm": 0.0,
        "surface_dice": 1.0,
        "volume_ml": 0.0,
        "reference_ml": 0.0,
    }


def test_a_shift_of_one_slice_is_five_millimetres():
    shifted = np.roll(BOX, 1, axis=2)
    scores = score(shifted, BOX, tolerance=2.0)
    assert scores["dice"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores["hd95_mm"] == pytest.approx(5.0)
    assert scores["surface_dice"] < 0.8
    assert score(shifted, BOX, tolerance=5.0)["surface_dice"] == 1.0


def test_a_shift_of_a_plate_leaves_no_surface_within_the_tolerance():
    plate, shifted = box((4, 4, 3), (14, 12, 4)), box((4, 4, 5), (14, 12, 6))
    scores = score(shifted, plate, tolerance=9.0)
    assert (scores["dice"], scores["surface_dice"]) == (0.0, 0.0)
    assert scores["hd95_mm"] == pytest.approx(10.0)


def test_dice_of_a_half():
    half = box((4, 4, 3), (7, 9, 7))
    assert score(half, BOX)["dice"] == pytest.approx(2 * 60 / (60 + 120))


def test_every_label_is_scored_by_itself():
    reference = BOX + 2 * np.roll(BOX, 8, axis=0)
    scores = evaluate(BOX, reference, AFFINE, {1: "first", 2: "second", 7: "absent"})
    assert [scores[name]["dice"] for name in ("first", "second", "absent")] == [1.0, 0.0, 1.0]


def test_volumes_of_a_sheared_grid():
    sheared = AFFINE.copy()
    sheared[0, 2] = 3.0
    volume = evaluate(BOX, BOX, sheared, {1: "lesion"})["lesion"]["volume_ml"]
    assert volume == pytest.approx(0.6), "a shear moves slices and keeps their volume"


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"`prediction` must have the shape \(20, 16, 10\)"):
        score(BOX[1:], BOX)
