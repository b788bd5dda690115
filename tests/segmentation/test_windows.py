"""The intensity windows of a CT follow from its intensities."""

import logging
import re

import nibabel as nib
import numpy as np
import pytest
import torch

from attn3d.segmentation.configuration import configure
from attn3d.segmentation.datasets import find_dataset
from attn3d.segmentation.fingerprint import take_fingerprint
from attn3d.segmentation.portable import to_channels
from attn3d.segmentation.settings import settings_from
from attn3d.segmentation.windows import BRAIN_WINDOWS, warn_of_other_modality
from tests.segmentation.volumes import AFFINES, scan

SHAPE = (20, 20, 20)


def cohort(folder, air, tissue, label):
    """A data set in the layout of INSTANCE 2022, with given HU of air, tissue and label."""
    for index in range(2):
        generator = np.random.default_rng(index)
        data = generator.normal(tissue, 8, SHAPE)
        data[:5] = air
        data[8:14, 8:14, 8:14] = generator.normal(label, 8, (6, 6, 6))
        mask = np.zeros(SHAPE, np.uint8)
        mask[8:14, 8:14, 8:14] = 1
        for part, values in (("data", data.astype(np.float32)), ("label", mask)):
            (folder / part).mkdir(exist_ok=True)
            nib.save(scan(values, AFFINES["RAS"]), folder / part / f"{index:03d}.nii.gz")
    return find_dataset(folder)


def configured(dataset, **settings):
    fingerprint = take_fingerprint(dataset, dataset.cases, quiet=True)
    return configure(dataset, 1, fingerprint, settings_from(None, {"patch_size": (16, 16, 16)} | settings))


def contrast(dataset, windows):
    """The contrast of the label with its surroundings, in the channel where it is highest."""
    image = np.asarray(nib.load(dataset.cases[0].images[0]).dataobj)
    channels = to_channels(torch.from_numpy(image)[None], windows)
    inside, around = (channels[:, part, part, part].mean((1, 2, 3)) for part in (slice(8, 14), slice(15, None)))
    return float((inside - around).abs().max())


@pytest.mark.parametrize(("air", "tissue", "label"), [(-1000, 35, 65), (0, 30, 60)], ids=["a head", "a brain alone"])
def test_a_head_is_shown_in_brain_windows(air, tissue, label, tmp_path, caplog):
    dataset = cohort(tmp_path, air, tissue, label)
    config = configured(dataset)
    assert (dataset.modality, config.windows) == ("CT", BRAIN_WINDOWS)
    assert not caplog.records
    assert contrast(dataset, config.windows) > 0.5


def test_cases_without_a_label_do_not_change_the_window_of_the_labels(tmp_path):
    dataset = cohort(tmp_path, -1000, -850, -700)
    expected = configured(dataset).windows
    nib.save(scan(np.zeros(SHAPE, np.uint8), AFFINES["RAS"]), dataset.cases[1].label[0])
    found = configured(dataset).windows
    np.testing.assert_allclose(found[0], expected[0], atol=5)


@pytest.mark.parametrize(("tissue", "label"), [(-850, -700), (50, 900), (-80, -300)], ids=["lung", "bone", "fat"])
def test_other_ct_is_shown_in_windows_of_its_own(tissue, label, tmp_path, caplog):
    dataset = cohort(tmp_path, -1000, tissue, label)
    config = configured(dataset)
    assert config.windows != BRAIN_WINDOWS
    assert config.in_channels == 3
    assert not caplog.records, "all labels are visible"
    assert contrast(dataset, config.windows) > 0.5
    level, width = config.windows[0]
    assert level == pytest.approx(label, abs=10)
    assert width >= 80


@pytest.mark.parametrize(
    ("tissue", "label", "windows"), [(-850, -700, BRAIN_WINDOWS), (150, 110, ((40.0, 80.0),))], ids=["lung", "clot"]
)
def test_a_label_that_is_not_visible_in_given_windows_is_named(tissue, label, windows, tmp_path, caplog):
    dataset = cohort(tmp_path, -1000, tissue, label)
    with caplog.at_level(logging.WARNING, "attn3d"):
        config = configured(dataset, windows=windows)
    assert config.windows == windows, "given windows must be kept"
    assert contrast(dataset, config.windows) == pytest.approx(0, abs=0.01)
    median = re.search(r"The label 'ICH' is not visible: its median of (\S+) is outside", caplog.text)[1]
    assert float(median) == pytest.approx(label, abs=2)


@pytest.mark.parametrize(("tissue", "label"), [(300, 500), (900, 60)])
def test_mri_in_the_folders_of_a_ct_data_set_is_not_windowed(tissue, label, tmp_path, caplog):
    dataset = cohort(tmp_path, 0, tissue, label)
    with caplog.at_level(logging.WARNING, "attn3d"):
        config = configured(dataset)
    assert config.windows is None
    assert "its intensities are not Hounsfield units" in caplog.text
    assert contrast(dataset, config.windows) > 0.5


def test_the_fingerprint_has_the_darkest_values_of_all_scans(tmp_path):
    dataset = cohort(tmp_path, -1000, 35, 65)
    image = nib.load(dataset.cases[1].images[0])
    nib.save(scan(np.maximum(np.asarray(image.dataobj), -30), image.affine), dataset.cases[1].images[0])
    assert take_fingerprint(dataset, dataset.cases, quiet=True).darkest == (-1000, -30)


CT, NOT_CT, SOME_WITHOUT_SKULL = (-1024, -990), (-3, 20), (-1000, 0)


@pytest.mark.parametrize(
    ("darkest", "windows", "trained", "message"),
    [
        (-5, BRAIN_WINDOWS, CT, "has no air, its values are from -5, but all training scans have air"),
        (-1000, None, NOT_CT, "has the air of a CT, its values are from -1000, but no training scan has it"),
        (-950, BRAIN_WINDOWS, CT, ""),
        (0, BRAIN_WINDOWS, SOME_WITHOUT_SKULL, ""),
        (-300, None, NOT_CT, ""),
        (-1000, None, CT, ""),
        (-1000, None, SOME_WITHOUT_SKULL, ""),
        (0, BRAIN_WINDOWS, (), ""),
    ],
)
def test_a_scan_of_another_modality_is_named(darkest, windows, trained, message, caplog):
    with caplog.at_level(logging.WARNING, "attn3d"):
        warn_of_other_modality("scan.nii.gz", darkest, windows, trained)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == (
        [f"scan.nii.gz: {message}"] if message else []
    )
