import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from attn3d.segmentation import FileError, evaluate, evaluation, score
from tests.segmentation.volumes import AFFINES, scan

SPACING = (1.0, 1.0, 5.0)
AFFINE = np.diag([-1.0, 1.0, 5.0, 1.0])
SHAPE = (20, 16, 10)


def box(low, high):
    labels = np.zeros(SHAPE, np.uint8)
    labels[tuple(slice(*pair) for pair in zip(low, high, strict=True))] = 1
    return labels


BOX = box((4, 4, 3), (10, 9, 7))  # 6 x 5 x 4 voxels of 5 mm³, 0.6 ml
NOTHING = np.zeros(SHAPE, np.uint8)
DIAGONAL = np.sqrt(20**2 + 16**2 + 50**2)


def lesion(prediction, reference, **options):
    return score(prediction, reference, AFFINE, {1: "lesion"}, **options)["lesion"]


def lesion_on(affine, prediction, reference, **options):
    return score(prediction, reference, affine, {1: "lesion"}, **options)["lesion"]


def test_a_perfect_segmentation():
    assert lesion(BOX, BOX) == {
        "dice": 1.0,
        "hd95_mm": 0.0,
        "surface_dice": 1.0,
        "relative_volume_difference": 0.0,
        "volume_ml": pytest.approx(0.6),
        "reference_ml": pytest.approx(0.6),
        "lesions": 1,
        "lesions_found": 1,
        "false_lesions": 0,
    }


@pytest.mark.parametrize(("prediction", "reference"), [(NOTHING, BOX), (BOX, NOTHING)], ids=["missed", "false"])
def test_a_missed_label_and_a_false_alarm_get_the_worst_scores(prediction, reference):
    scores = lesion(prediction, reference)
    assert scores["dice"] == 0.0
    assert scores["surface_dice"] == 0.0
    assert scores["hd95_mm"] == pytest.approx(DIAGONAL)
    assert scores["relative_volume_difference"] == (1.0 if reference.any() else None)
    assert scores["volume_ml"] == pytest.approx(0.6 * prediction.any())
    assert scores["reference_ml"] == pytest.approx(0.6 * reference.any())
    assert scores["lesions"] == reference.any()
    assert scores["lesions_found"] == 0
    assert scores["false_lesions"] == prediction.any()


def test_an_empty_prediction_of_an_empty_reference_is_perfect():
    assert lesion(NOTHING, NOTHING) == {
        "dice": 1.0,
        "hd95_mm": 0.0,
        "surface_dice": 1.0,
        "relative_volume_difference": 0.0,
        "volume_ml": 0.0,
        "reference_ml": 0.0,
        "lesions": 0,
        "lesions_found": 0,
        "false_lesions": 0,
    }


def test_a_shift_of_one_slice_is_five_millimetres():
    shifted = np.roll(BOX, 1, axis=2)
    scores = lesion(shifted, BOX, tolerance=2.0)
    assert scores["dice"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores["hd95_mm"] == pytest.approx(5.0)
    assert scores["surface_dice"] < 0.8
    assert scores["relative_volume_difference"] == 0.0
    assert lesion(shifted, BOX, tolerance=5.0)["surface_dice"] == 1.0


def test_a_shift_of_a_plate_leaves_no_surface_within_the_tolerance():
    plate, shifted = box((4, 4, 3), (14, 12, 4)), box((4, 4, 5), (14, 12, 6))
    scores = lesion(shifted, plate, tolerance=9.0)
    assert (scores["dice"], scores["surface_dice"]) == (0.0, 0.0)
    assert scores["hd95_mm"] == pytest.approx(10.0)


def test_dice_and_volume_of_a_half():
    half = box((4, 4, 3), (7, 9, 7))
    assert lesion(half, BOX)["dice"] == pytest.approx(2 * 60 / (60 + 120))
    assert lesion(half, BOX)["relative_volume_difference"] == 0.5
    assert lesion(BOX, half)["relative_volume_difference"] == 1.0


def test_lesions_that_touch_at_a_corner_are_one():
    small, corner, apart = (box((at, at, at), (at + 1,) * 3) for at in (2, 3, 5))
    assert lesion(NOTHING, small + corner)["lesions"] == 1
    assert lesion(NOTHING, small + corner + apart)["lesions"] == 2


def test_one_voxel_finds_a_lesion_and_one_component_may_find_two():
    reference = BOX + box((14, 4, 3), (16, 6, 5))
    scores = lesion(box((9, 4, 3), (10, 5, 4)) + box((0, 14, 9), (1, 15, 10)), reference)
    assert (scores["lesions"], scores["lesions_found"], scores["false_lesions"]) == (2, 1, 1)
    bridge = box((9, 4, 3), (15, 5, 4))
    assert (lesion(bridge, reference)["lesions_found"], lesion(bridge, reference)["false_lesions"]) == (2, 0)


def test_every_label_is_scored_by_itself():
    reference = BOX + 2 * np.roll(BOX, 8, axis=0)
    scores = score(BOX, reference, AFFINE, {1: "first", 2: "second", 7: "absent"})
    assert [scores[name]["dice"] for name in ("first", "second", "absent")] == [1.0, 0.0, 1.0]


def test_volumes_of_a_sheared_grid():
    sheared = AFFINE.copy()
    sheared[0, 2] = 3.0
    volume = score(BOX, BOX, sheared, {1: "lesion"})["lesion"]["volume_ml"]
    assert volume == pytest.approx(0.6), "a shear does not change the volume"


def tilted(degrees):
    """The affine of a 1.5 x 1.5 x 3 mm grid with shifted slices, as from a tilted gantry."""
    return AFFINE @ np.array(
        [[1.5, 0, 0, 0], [0, 1.5, 0.6 * np.tan(np.radians(degrees)) * 5, 0], [0, 0, 0.6, 0], [0, 0, 0, 1]]
    )


@pytest.mark.parametrize("degrees", [0, 20, 25, -25])
def test_distances_between_voxels_of_a_tilted_grid(degrees):
    """With the voxel sizes only, both diagonals would have the same length."""
    affine = tilted(degrees)
    one, up, down = (box(place, np.array(place) + 1) for place in ((4, 8, 2), (4, 14, 8), (4, 2, 8)))
    shift = 6 * 3 * np.tan(np.radians(degrees))
    for other, along in ((up, 6 * 1.5), (down, -6 * 1.5)):
        expected = np.hypot(along + shift, 6 * 3)
        scores = lesion_on(affine, one, other, tolerance=expected)
        assert scores["hd95_mm"] == pytest.approx(expected)
        assert scores["surface_dice"] == 1
        assert lesion_on(affine, one, other, tolerance=expected - 0.01)["surface_dice"] == 0


@pytest.mark.parametrize("degrees", [0, 20, 25])
def test_the_distance_of_concentric_balls_on_a_tilted_grid(degrees):
    affine = tilted(degrees)
    shape = (60, 90, 32)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    distance = np.linalg.norm(np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T - middle, axis=-1)
    scores = lesion_on(affine, distance < 30, distance < 20, tolerance=7.5)
    assert scores["hd95_mm"] == pytest.approx(10, abs=1), "10 mm within a voxel"
    assert scores["surface_dice"] < 0.1
    assert lesion_on(affine, distance < 30, distance < 20, tolerance=11.5)["surface_dice"] > 0.99


@pytest.mark.parametrize("shear", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_the_worst_distance_is_the_longest_diagonal(shear):
    affine = AFFINE.copy()
    affine[:2, 2] = shear
    corners = np.array([(x, y, z) for x in (0, 20) for y in (0, 16) for z in (0, 10)]) @ affine[:3, :3].T
    longest = max(np.linalg.norm(one - other) for one in corners for other in corners)
    assert lesion_on(affine, NOTHING, BOX)["hd95_mm"] == pytest.approx(longest)


@pytest.mark.parametrize("seed", range(4))
def test_scores_on_a_straight_grid_are_those_of_monai(seed):
    generator = np.random.default_rng(seed)
    blurred = [ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.5) for _ in range(2)]
    masks = [(one > np.quantile(one, 0.7)) for one in blurred]
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in masks]
    scores = lesion(*masks, tolerance=2.5)
    surface = {"include_background": True, "spacing": list(SPACING)}
    assert scores["dice"] == pytest.approx(compute_dice(*tensors).item())
    assert scores["hd95_mm"] == pytest.approx(compute_hausdorff_distance(*tensors, percentile=95, **surface).item())
    expected = compute_surface_dice(*tensors, class_thresholds=[2.5], **surface).item()
    assert scores["surface_dice"] == pytest.approx(expected)


def plain_scores(prediction, reference, affine, tolerance):
    """Scores from the distances between all pairs of surface voxels, without cropping."""
    surfaces = []
    for mask in (prediction, reference):
        padded, inner = np.pad(mask, 1), mask.copy()
        for axis in range(3):
            for shift in (-1, 1):
                inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
        surfaces.append(np.argwhere(mask & ~inner) @ affine[:3, :3].T)
    between = np.linalg.norm(surfaces[0][:, None] - surfaces[1][None], axis=-1)
    distances = [between.min(axis=1), between.min(axis=0)]
    return {
        "dice": 2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()),
        "hd95_mm": max(np.percentile(one, 95) for one in distances),
        "surface_dice": (np.concatenate(distances) <= tolerance + 1e-6).mean(),
        "lesions": ndimage.label(reference, np.ones((3, 3, 3)))[1],
    }


@pytest.mark.parametrize("geometry", AFFINES)
@pytest.mark.parametrize("where", ["inside", "at the border", "far apart"])
def test_scores_within_a_box_are_those_of_the_whole_volume(geometry, where):
    generator = np.random.default_rng(len(where))
    masks = [ndimage.gaussian_filter(generator.normal(size=SHAPE), 1.5) > 0.1 for _ in range(2)]
    if where != "at the border":
        kept = box((3, 4, 2), (16, 13, 8)) > 0
        masks = [mask & kept for mask in masks]
    if where == "far apart":
        masks[0][9:], masks[1][:11] = False, False
    scores = lesion_on(AFFINES[geometry], *masks, tolerance=2.5)
    for name, expected in plain_scores(*masks, AFFINES[geometry], 2.5).items():
        assert scores[name] == pytest.approx(expected), name


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"`prediction` must have the shape \(20, 16, 10\)"):
        lesion(BOX[1:], BOX)


def test_a_slice_is_no_volume():
    with pytest.raises(ValueError, match=r"`reference` must be \(X, Y, Z\), got shape \(20, 16\)"):
        lesion(BOX[..., 4], BOX[..., 4])


@pytest.mark.parametrize("affine", [np.eye(3), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_an_affine_that_is_no_map_is_refused(affine):
    with pytest.raises(ValueError, match="`affine` must be an invertible 4 x 4 matrix, got"):
        lesion_on(affine, BOX, BOX)


def test_a_tolerance_is_a_number_of_at_least_zero():
    for error, tolerance in ((ValueError, -1), (ValueError, np.nan), (TypeError, "2 mm")):
        with pytest.raises(error, match="`tolerance` must be a finite number of at least 0, got"):
            lesion(BOX, BOX, tolerance=tolerance)


NAMES = {1: "EDH", 2: "SDH"}
HALF = box((4, 4, 3), (7, 9, 7))
COHORT = {  # prediction and reference of each case
    "half": (HALF, BOX),
    "missed": (NOTHING, BOX),
    "false alarm": (BOX, NOTHING),
    "rightly empty": (NOTHING, NOTHING),
}


@pytest.fixture
def folders(tmp_path):
    """Writes the cohort as files in two folders."""
    for side, folder in enumerate(("predictions", "references")):
        (tmp_path / folder).mkdir()
        for name, pair in COHORT.items():
            nib.save(scan(pair[side], AFFINE), tmp_path / folder / f"{name}.nii.gz")
    return tmp_path / "predictions", tmp_path / "references"


def test_means_over_all_cases_over_those_with_the_label_and_pooled(folders):
    overall = evaluate(*folders, labels=NAMES, quiet=True)["overall"]
    two_thirds = 2 * 60 / (60 + 120)
    assert overall["EDH"] == {
        "cases": 4,
        "cases_with": 2,
        "cases_missed": 1,
        "cases_false": 1,
        "dice": pytest.approx((two_thirds + 0 + 0 + 1) / 4),
        "hd95_mm": pytest.approx((3 + 2 * DIAGONAL + 0) / 4),
        "surface_dice": pytest.approx((lesion(HALF, BOX)["surface_dice"] + 0 + 0 + 1) / 4),
        "dice_with": pytest.approx((two_thirds + 0) / 2),
        "hd95_mm_with": pytest.approx((3 + DIAGONAL) / 2),
        "surface_dice_with": pytest.approx(lesion(HALF, BOX)["surface_dice"] / 2),
        "relative_volume_difference_with": pytest.approx((0.5 + 1) / 2),
        "dice_pooled": pytest.approx(2 * 60 / (60 + 120 + 120 + 120)),
        "relative_volume_difference_pooled": pytest.approx((120 + 120 - 60 - 120) / 240),
        "volume_ml": pytest.approx(0.9),
        "reference_ml": pytest.approx(1.2),
        "lesions": 2,
        "lesions_found": 1,
        "false_lesions": 1,
    }
    absent = overall["SDH"]
    assert (absent["cases_with"], absent["dice"], absent["dice_with"], absent["dice_pooled"]) == (0, 1.0, None, 1.0)
    assert overall["any label"] == overall["EDH"], "EDH is the only label"


def test_the_files_have_the_returned_scores(folders, tmp_path):
    out = tmp_path / "deep" / "scores"
    scores = evaluate(*folders, out, labels=NAMES, tolerance=1.5, quiet=True)
    assert json.loads((out / "scores.json").read_text()) == scores
    assert (scores["tolerance_mm"], scores["labels"]) == (1.5, {"EDH": 1, "SDH": 2})
    with (out / "scores.csv").open() as file:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4 * 3 + 3 * 3
    assert float(rows["half", "EDH"]["dice"]) == scores["cases"]["half"]["EDH"]["dice"]
    assert rows["false alarm", "EDH"]["relative_volume_difference"] == ""
    assert float(rows["mean of all cases", "EDH"]["dice"]) == scores["overall"]["EDH"]["dice"]
    assert float(rows["mean of cases with the label", "EDH"]["dice"]) == scores["overall"]["EDH"]["dice_with"]
    assert rows["all cases as one volume", "EDH"]["lesions_found"] == "1"
    assert sorted(path.name for path in out.iterdir()) == ["scores.csv", "scores.json"]


def test_two_files_and_labels_by_their_values(folders):
    scores = evaluate(folders[0] / "half.nii.gz", folders[1] / "half.nii.gz", quiet=True)
    assert list(scores["cases"]) == ["half"]
    assert list(scores["overall"]) == ["label 1"]


@pytest.mark.parametrize("side", [0, 1])
def test_a_scan_is_no_label_map(side, folders):
    """An 8-bit scan has whole numbers from 0 to 255 too. The other cases are scored."""
    noise = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    path = folders[side] / "half.nii.gz"
    nib.save(scan(noise, AFFINE), path)
    scores = evaluate(*folders, quiet=True)
    assert list(scores["overall"]) == ["label 1"]
    assert list(scores["failed"]) == [str(path)]
    with pytest.raises(FileError, match=r"half\.nii\.gz: looks like a scan: it has 256 values, .*; give a label map"):
        evaluate(*(folder / "half.nii.gz" for folder in folders), quiet=True)
    nib.save(scan((1000.5 * noise).astype(np.float32), AFFINE), path)
    with pytest.raises(
        FileError, match=r"half\.nii\.gz: the label contains the value 1000\.5; map its values to whole"
    ):
        evaluate(*(folder / "half.nii.gz" for folder in folders), quiet=True)


def test_a_parcellation_of_many_small_regions_is_scored(tmp_path):
    regions = np.arange(1, 251, dtype=np.uint8).reshape(10, 5, 5).repeat(2, axis=0).repeat(3, axis=1).repeat(2, axis=2)
    nib.save(scan(regions, AFFINE), tmp_path / "regions.nii.gz")
    scores = evaluate(tmp_path / "regions.nii.gz", tmp_path / "regions.nii.gz", quiet=True)
    assert len(scores["labels"]) == 250
    assert scores["overall"]["label 250"]["dice"] == 1
    lesions = np.zeros((20, 20, 20), np.uint8)  # numbered, of one voxel each
    lesions[::4, ::4, ::4] = np.arange(1, 126).reshape(5, 5, 5)
    nib.save(scan(lesions, AFFINE), tmp_path / "lesions.nii.gz")
    scores = evaluate(tmp_path / "lesions.nii.gz", tmp_path / "lesions.nii.gz", quiet=True)
    assert len(scores["labels"]) == 125


def test_bad_files_are_listed_and_the_others_scored(folders, capsys):
    predictions, references = folders
    (predictions / "half.nii.gz").write_bytes(b"no NIfTI")
    nib.save(scan(BOX[1:], AFFINE), predictions / "missed.nii.gz")
    nib.save(scan(7 * BOX, AFFINE), references / "rightly empty.nii.gz")
    nib.save(scan(BOX, AFFINE), predictions / "stray.nii")
    nib.save(scan(BOX, AFFINE), references / "forgotten.nii.gz")
    scores = evaluate(predictions, references, labels=NAMES)
    assert list(scores["cases"]) == ["false alarm"]
    assert scores["overall"]["EDH"]["cases"] == 1
    problems = {path.rsplit("/", 1)[1]: problem for path, problem in scores["failed"].items()}
    assert problems.keys() == {
        "half.nii.gz", "missed.nii.gz", "rightly empty.nii.gz", "stray.nii", "forgotten.nii.gz",
    }  # fmt: skip
    assert "not a NIfTI file" in problems["half.nii.gz"]
    owner = f"the reference {references / 'missed.nii.gz'} has (20, 16, 10)"
    assert f"it has shape (19, 16, 10), but {owner}" in problems["missed.nii.gz"]
    assert "the value 7; map its values to 0, 1, 2" in problems["rightly empty.nii.gz"]
    assert problems["stray.nii"] == f"has no file of the same name in {references}"
    assert problems["forgotten.nii.gz"] == f"has no file of the same name in {predictions}"
    assert "100%" in capsys.readouterr().out
    assert evaluate(predictions, references, quiet=True)["labels"] == {"label 1": 1, "label 7": 7}


@pytest.mark.parametrize("side", [0, 1])
def test_labels_are_those_of_pairs_that_can_be_read(side, folders):
    """A value that occurs only beside an unusable file would have the best scores in all other cases."""
    (folders[side] / "half.nii.gz").write_bytes(b"no NIfTI")
    nib.save(scan(7 * BOX, AFFINE), folders[1 - side] / "half.nii.gz")
    scores = evaluate(*folders, quiet=True)
    assert scores["labels"] == {"label 1": 1}
    assert list(scores["failed"]) == [str(folders[side] / "half.nii.gz")]


@pytest.mark.parametrize("name", ["dataset.json", "config.json"])
@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_references_are_marked(name, simulated, folders, tmp_path):
    """By the description of their data set, or of the run that they belong to."""
    assert evaluate(*folders, quiet=True)["simulated"] is False
    (tmp_path / name).write_text(json.dumps({"simulated": simulated and {"seed": 0}}))
    scores = evaluate(*folders, tmp_path / "out", quiet=True)
    assert scores["simulated"] is simulated
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["simulated"] is simulated


def test_a_prediction_off_the_grid_is_refused(folders):
    nib.save(scan(BOX, AFFINE + 5 * np.eye(4, k=3)), folders[0] / "half.nii.gz")
    with pytest.raises(FileError, match=r"predictions/half\.nii\.gz: .* 5 mm off the grid of the ref.*/half"):
        evaluate(folders[0] / "half.nii.gz", folders[1] / "half.nii.gz", quiet=True)


def test_files_are_not_overwritten_without_the_option_or_left_incomplete(folders, tmp_path):
    evaluate(*folders, tmp_path / "out", labels=NAMES, quiet=True)
    before = (tmp_path / "out" / "scores.json").read_text()
    with pytest.raises(FileError, match=r"scores\.json: already exists"):
        evaluate(*folders, tmp_path / "out", labels=NAMES, quiet=True)
    evaluate(*folders, tmp_path / "out", labels=NAMES, tolerance=9, overwrite=True, quiet=True)
    assert (tmp_path / "out" / "scores.json").read_text() != before
    for path in folders[0].iterdir():
        path.write_bytes(b"")
    for labels in (NAMES, None):
        with pytest.raises(FileError, match=r"predictions: 4 files cannot be used: \(1\) .*; \(4\) "):
            evaluate(*folders, tmp_path / "none", labels=labels, quiet=True)
    assert not (tmp_path / "none").exists()


def test_errors_for_invalid_arguments_suggest_a_fix(folders, tmp_path):
    predictions, references = folders
    with pytest.raises(FileError, match="give two files or two folders"):
        evaluate(predictions, references / "half.nii.gz")
    with pytest.raises(FileError, match=r"nowhere: does not exist"):
        evaluate(tmp_path / "nowhere", references)
    with pytest.raises(FileError, match="give both the same name"):
        evaluate(predictions, tmp_path)
    with pytest.raises(FileError, match=r"rightly empty\.nii\.gz: nothing is labelled"):
        evaluate(predictions / "rightly empty.nii.gz", references / "rightly empty.nii.gz")
    with pytest.raises(ValueError, match="`tolerance` must be a finite number of at least 0, got -1"):
        evaluate(predictions, references, tolerance=-1)
    with pytest.raises(TypeError, match="`tolerance` must be a finite number of at least 0, got '2 mm'"):
        evaluate(predictions, references, tolerance="2 mm")


def test_each_damaged_file_is_named_without_given_labels(folders, monkeypatch):
    """Both files of a pair, and also if a library's error names no file."""
    damaged = {str(folder / f"{min(COHORT)}.nii.gz") for folder in folders}
    read = evaluation.read_segmentation

    def read_some(path, *given, **named):
        if str(path) in damaged:
            raise RuntimeError("no such codec")
        return read(path, *given, **named)

    monkeypatch.setattr(evaluation, "read_segmentation", read_some)
    assert evaluate(*folders, quiet=True)["failed"] == dict.fromkeys(sorted(damaged), "RuntimeError: no such codec")


def test_if_no_case_can_be_scored_a_failed_file_is_named(tmp_path):
    """The files are a pair without labels, and a prediction without a reference."""
    for part, name in (("found", "case"), ("found", "alone"), ("reference", "case")):
        (tmp_path / part).mkdir(exist_ok=True)
        nib.save(scan(NOTHING, AFFINE), tmp_path / part / f"{name}.nii.gz")
    with pytest.raises(FileError, match=r"alone"):
        evaluate(tmp_path / "found", tmp_path / "reference", quiet=True)


def test_a_duplicate_name_is_not_scored(folders):
    """Neither of the two files is used."""
    predictions, references = folders
    nib.save(scan(BOX, AFFINE), predictions / "half.nii")
    nib.save(scan(BOX, AFFINE), references / "missed.nii")
    scores = evaluate(predictions, references, labels=NAMES, quiet=True)
    assert sorted(scores["cases"]) == ["false alarm", "rightly empty"]
    problems = {path.rsplit("/", 2)[1] + "/" + path.rsplit("/", 1)[1]: text for path, text in scores["failed"].items()}
    assert problems == {
        "predictions/half.nii": "also exists as half.nii.gz; remove one of them",
        "predictions/half.nii.gz": "also exists as half.nii; remove one of them",
        "references/missed.nii": "also exists as missed.nii.gz; remove one of them",
        "references/missed.nii.gz": "also exists as missed.nii; remove one of them",
    }


@pytest.mark.parametrize("names", [{1: "bleed", 2: "bleed"}, {1: "EDH", 2: "any label"}])
def test_labels_with_the_same_name_are_not_scored(names, folders, tmp_path):
    with pytest.raises(ValueError, match="give each label its own name"):
        evaluate(*folders, tmp_path / "out", labels=names, quiet=True)
    with pytest.raises(ValueError, match=r"`labels` has the name '.*' for \[\[.*\]\]"):
        score(BOX, BOX, AFFINE, names)
    assert not (tmp_path / "out").exists()
