"""Regions and ignored voxels, from a dataset.json to the scores."""

import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from safetensors.numpy import load_file

from attn3d.segmentation import Labels, Run, evaluate, find_dataset, predict, report, score, train
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.labels import ANY
from tests.segmentation.runs import SMALL
from tests.segmentation.volumes import AFFINES, head, scan

NAMES = ("whole tumour", "tumour core", "enhancing")
BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3, "ignore": 4}
LABELS = Labels(NAMES, ((1, 2, 3), (2, 3), (3,)), (1, 2, 3), ignore=4)
AFFINE = AFFINES["RAS"]


@pytest.fixture(scope="module")
def brats(tmp_path_factory):
    """Nested balls in scans of two images, with an unlabelled corner."""
    folder = tmp_path_factory.mktemp("brats")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for index in range(4):
        image, label = head(AFFINE, seed=index)
        label = label.astype(np.uint8)
        label[: 8 + index, :, 20:] = 4
        for channel, values in enumerate((image, 300 - image)):
            nib.save(scan(values, AFFINE), folder / "imagesTr" / f"BRATS_{index}_{channel:04d}.nii.gz")
        nib.save(scan(label, AFFINE), folder / "labelsTr" / f"BRATS_{index}.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": BRATS, "regions_class_order": [1, 2, 3]}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.fixture(scope="module")
def run(brats, tmp_path_factory):
    settings = SMALL | {"epochs": 20, "width": 8, "patches_per_case": 4, "validate_every": 10}
    return train(brats, out=tmp_path_factory.mktemp("regions") / "run", **settings)


def read(path):
    return np.asarray(nib.load(path).dataobj)


def test_a_data_set_like_brats_is_learnt_and_scored_by_region(run, brats):
    assert Run.open(run.folder).config.labels == find_dataset(brats).labels
    assert run.config.out_channels == 3
    scores = json.loads(run.scores.read_text())
    assert list(scores["overall"]) == [*NAMES], "the first region contains the others"
    assert all(scores["overall"][name]["dice"] > 0.8 for name in NAMES)
    (name, case), *_ = scores["cases"].items()
    found = read(run.folder / "validation" / f"{name}.nii.gz")
    true = read(run.folder / "validation" / "references" / f"{name}.nii.gz")
    assert 4 in true
    assert 4 not in found
    for region, values in zip(NAMES, ((1, 2, 3), (2, 3), (3,)), strict=True):
        one, other = (np.isin(label, values) & (true != 4) for label in (found, true))
        assert case[region]["dice"] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
        assert case[region]["volume_ml"] == pytest.approx(one.sum() * 8 / 1000)
    columns = (run.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [column for column in columns if column.startswith("dice ")] == [f"dice {name}" for name in NAMES]


def test_labels_follow_from_the_probabilities_by_nnunets_rule(run, brats, tmp_path):
    found = predict(run.folder, brats, tmp_path / "out", probabilities=True, statistics=True, quiet=True)
    label = read(found.written["BRATS_0"])
    probabilities = read(tmp_path / "out" / "BRATS_0_probabilities.nii.gz")
    assert probabilities.shape == (*label.shape, 3)
    assert (np.abs(probabilities.sum(axis=-1) - 1) > 0.5).any(), "regions have independent probabilities"
    expected = np.zeros_like(label)
    for region, value in enumerate((1, 2, 3)):
        expected[probabilities[..., region] > 0.5] = value
    np.testing.assert_array_equal(label, expected)
    millilitres = {
        name: pytest.approx(np.isin(label, values).sum() * 8 / 1000)
        for name, values in zip(NAMES, ((1, 2, 3), (2, 3), (3,)), strict=True)
    }
    assert found.volume_ml["BRATS_0"] == millilitres
    header = (tmp_path / "out" / "statistics.csv").read_text().splitlines()[0]
    assert header == "case," + ",".join(f"{name} ml" for name in NAMES)


def test_nnunet_writes_the_same_for_the_probabilities_of_a_run(run, brats, tmp_path):
    handling = pytest.importorskip(
        "nnunetv2.utilities.label_handling.label_handling", reason="nnU-Net is not installed: pip install nnunetv2"
    )
    manager = handling.LabelManager(BRATS, [1, 2, 3])
    found = predict(run.folder, brats, tmp_path, probabilities=True, quiet=True)
    for name, path in found.written.items():
        probabilities = read(tmp_path / f"{name}_probabilities.nii.gz")
        theirs = manager.convert_probabilities_to_segmentation(np.moveaxis(probabilities, -1, 0))
        np.testing.assert_array_equal(read(path), theirs)
        assert set(np.unique(theirs)) == {0, 1, 2, 3}


def test_scores_are_those_of_nnunet(run, brats):
    metrics = pytest.importorskip(
        "nnunetv2.evaluation.evaluate_predictions", reason="nnU-Net is not installed: pip install nnunetv2"
    )
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    for name, case in json.loads(run.scores.read_text())["cases"].items():
        files = [str(run.folder / "validation" / part / f"{name}.nii.gz") for part in ("references", ".")]
        theirs = metrics.compute_metrics(*files, NibabelIO(), [(1, 2, 3), (2, 3), (3,)], 4)["metrics"]
        assert [one["Dice"] for one in theirs.values()] == pytest.approx([case[region]["dice"] for region in NAMES])


@pytest.mark.nightly
def test_reports_and_previews_show_regions(run, brats, tmp_path):
    predict(run.folder, brats / "imagesTr", tmp_path, preview=True, probabilities=True, quiet=True)
    page = (tmp_path / "BRATS_1.html").read_text()
    assert all(f"probability of {name}" in page for name in NAMES)
    assert "whole tumour" in report(run, overwrite=True).read_text()


def test_a_fingerprint_excludes_ignored_voxels(brats):
    dataset = find_dataset(brats)
    label = read(dataset.cases[0].label[0])
    found = take_fingerprint(dataset, dataset.cases[:1], quiet=True)
    assert found.volume_ml == {
        name: pytest.approx(np.isin(label, values).sum() * 8 / 1000, abs=1e-3)
        for name, values in zip(NAMES, ((1, 2, 3), (2, 3), (3,)), strict=True)
    }
    assert found.cases_with == dict.fromkeys(NAMES, 1)


def test_prepared_cases_list_the_voxels_of_regions_and_the_annotated_voxels(run):
    for path in (run.folder / "prepared").glob("*.safetensors"):
        stored = load_file(path)
        assert {*stored} == {"image", "label", "annotated", *(f"foreground {name}" for name in NAMES)}
        label = stored["label"].ravel()
        assert (label[stored["foreground tumour core"]] >= 2).all()
        assert len(stored["foreground tumour core"]) == np.isin(label, (2, 3)).sum() > 0
        assert len(stored["annotated"]) == (label != 4).sum() < label.size
        assert (label[stored["annotated"]] != 4).all()


def test_a_case_without_annotation_does_not_stop_a_training(brats, tmp_path):
    shutil.copytree(brats, tmp_path / "data")
    label = nib.load(brats / "labelsTr" / "BRATS_0.nii.gz")
    nib.save(scan(np.full(label.shape, 4, np.uint8), label.affine), tmp_path / "data" / "labelsTr" / "BRATS_0.nii.gz")
    folds = tmp_path / "folds.json"
    folds.write_text(json.dumps([{"train": ["BRATS_0", "BRATS_1"], "val": ["BRATS_2"]}]))
    assert train(tmp_path / "data", out=tmp_path / "run", folds=folds, **SMALL).finished


def test_ignored_voxels_do_not_count():
    """Scores do not depend on the prediction in ignored voxels."""
    random = np.random.default_rng(0)
    reference = random.choice(5, (9, 8, 7), p=[0.6, 0.1, 0.1, 0.1, 0.1]).astype(np.uint8)
    prediction = random.integers(0, 4, reference.shape).astype(np.uint8)
    expected = score(prediction, reference, AFFINE, LABELS)
    other = np.where(reference == 4, random.integers(0, 4, reference.shape), prediction)
    assert (other != prediction).any()
    assert score(other, reference, AFFINE, LABELS) == expected
    assert score(*(np.where(reference == 4, 0, one) for one in (prediction, reference)), AFFINE, LABELS) == expected
    assert expected["whole tumour"]["reference_ml"] == pytest.approx(np.isin(reference, (1, 2, 3)).sum() * 8 / 1000)


def test_any_label_is_scored_if_no_region_contains_all(tmp_path):
    """For labels, and for regions none of which contains all values; otherwise that region has the score."""
    random = np.random.default_rng(1)
    for folder, most in (("found", 4), ("true", 5)):
        (tmp_path / folder).mkdir()
        label = random.integers(0, most, (9, 8, 7)).astype(np.uint8)
        nib.save(scan(label, AFFINE), tmp_path / folder / "one.nii.gz")
    found, true = (read(tmp_path / folder / "one.nii.gz") for folder in ("found", "true"))
    folders, counting = (tmp_path / "found", tmp_path / "true"), true != 4
    for labels in (
        replace(Labels.of({1: "a", 2: "b", 3: "c"}), ignore=4),
        Labels(("left", "right"), ((1, 3), (2, 3)), (1, 2), ignore=4),
    ):
        case = evaluate(*folders, labels=labels, quiet=True)["cases"]["one"]
        one, other = (found > 0) & counting, (true > 0) & counting
        assert list(case) == [*labels.names, ANY]
        assert case[ANY]["dice"] == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
    assert list(evaluate(*folders, labels=LABELS, quiet=True)["cases"]["one"]) == [*NAMES]
