import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio

from attn3d.segmentation import degrade, hold_out_anterior, patch_loader, training_subject
from attn3d.segmentation.data import LabelledPatches
from tests.segmentation.volumes import AFFINES, head, scan

PATCH = (16, 16, 16)


def pair(name):
    image, labels = head(AFFINES[name])
    return scan(image, AFFINES[name]), scan(labels, AFFINES[name])


@pytest.mark.parametrize("name", AFFINES)
def test_the_split_is_along_the_anterior_posterior_axis(name):
    _, label = pair(name)
    posterior, anterior = hold_out_anterior(label, 0.4)
    labels = np.asarray(label.dataobj)
    part = np.zeros(labels.shape, int)
    part[posterior] += 1
    part[anterior] += 2
    assert set(np.unique(part)) == {1, 2}, "each voxel is in one part"

    y = nib.affines.apply_affine(label.affine, np.argwhere(np.ones(labels.shape)))[:, 1]
    assert y[part.ravel() == 1].mean() < y[part.ravel() == 2].mean()
    along = next(axis for axis, cut in enumerate(posterior) if cut != slice(None))
    extent = np.flatnonzero(labels.any(axis=tuple({0, 1, 2} - {along})))
    behind = labels[posterior].shape[along] - (extent[0] if posterior[along].start is None else 0)
    if posterior[along].start is not None:
        behind = extent[-1] + 1 - posterior[along].start
    assert abs(behind - 0.6 * extent.size) <= 0.5 + 1e-9


def test_a_label_too_thin_to_split_is_refused():
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[:, 2] = 1
    with pytest.raises(ValueError, match="must span more voxels from back to front"):
        hold_out_anterior(scan(labels, AFFINES["RAS"]), 0.4)


@pytest.mark.parametrize("name", ["LAS, 5 mm slices", "sheared"])
def test_a_subject_is_on_the_working_grid_and_no_smaller_than_a_patch(name):
    subject = training_subject(*pair(name), spacing=(2.0, 2.0, 2.0), patch_size=(48, 16, 16))
    assert subject.spatial_shape[0] == 48
    assert subject.spacing == pytest.approx((2.0, 2.0, 2.0))
    assert set(subject.label.data.unique().tolist()) == {0, 1, 2, 3}
    inside, outside = (subject.image.data[subject.label.data == value].mean() for value in (3, 0))
    assert inside > 250
    assert outside < 30


def test_an_epoch_gives_augmented_normalised_patches_with_their_labels():
    torch.manual_seed(0)
    subject = training_subject(*pair("RAS"), spacing=(2.0, 2.0, 2.0), patch_size=PATCH)
    batches = list(patch_loader([subject, subject], PATCH, batch_size=2, patches_per_scan=4))
    assert len(batches) == 4
    for batch in batches:
        assert batch["image"][tio.DATA].shape == batch["label"][tio.DATA].shape == (2, 1, *PATCH)
        assert batch["image"][tio.DATA].abs().max() < 20
        assert set(batch["label"][tio.DATA].unique().tolist()) <= {0, 1, 2, 3}
    images = [batch["image"][tio.DATA] for batch in batches]
    assert not torch.equal(images[0], images[1])


def test_a_degraded_scan_is_worse_and_always_the_same():
    image, label = pair("RAS")
    state = torch.get_rng_state()
    worse = degrade(image)
    assert torch.equal(torch.get_rng_state(), state), "the training's random numbers stay what they were"
    np.testing.assert_array_equal(worse.get_fdata(), degrade(image).get_fdata())
    np.testing.assert_array_equal(worse.affine, image.affine)
    inner = np.asarray(label.dataobj) == 3

    def variation(volume):
        intensities = volume.get_fdata()
        return intensities[inner].std() / intensities[np.asarray(label.dataobj) > 0].std()

    assert variation(worse) > 1.5 * variation(image)


PATCHES = 900
BOUND = 3 * np.sqrt(2 / 9 / PATCHES)  # three deviations of a share of two thirds


def patches_of(labels, size, share=2 / 3):
    """The labels and corners of many patches."""
    torch.manual_seed(0)
    labels = torch.from_numpy(labels)[None]
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.zeros(labels.shape)), label=tio.LabelMap(tensor=labels))
    drawn = list(LabelledPatches(size, share)(subject, PATCHES))
    assert all(patch.spatial_shape == size for patch in drawn)
    corners = np.array([patch[tio.LOCATION][:3].tolist() for patch in drawn])
    assert (corners >= 0).all()
    assert (corners + size <= np.array(labels.shape[1:])).all()
    return [patch["label"].data for patch in drawn], corners


@pytest.mark.parametrize("place", [(40, 40, 1), (30, 78, 1), (79, 79, 29), (40, 40, 15)], ids=str)
def test_two_of_three_patches_hold_the_label_wherever_it_lies(place):
    """A voxel in slice 1 of 30 is in as many patches as one in the middle; others hold it by chance."""
    labels = np.zeros((80, 80, 30), np.uint8)
    labels[place] = 1
    drawn, corners = patches_of(labels, (16, 16, 16))
    holding = np.array([bool(patch.any()) for patch in drawn])
    by_chance = np.prod([min(16, place[i] + 1, labels.shape[i] - place[i]) / (labels.shape[i] - 15) for i in range(3)])
    assert holding.mean() == pytest.approx(2 / 3 + by_chance / 3, abs=BOUND)
    expected = np.clip(np.array(place) - 8, 0, np.array(labels.shape) - 16)
    assert (corners == expected).all(axis=1).mean() == pytest.approx(2 / 3, abs=BOUND), "centred, or at the border"


def test_the_share_is_of_the_labels_that_a_case_has():
    """Of thirteen labels one: two of three patches hold it all the same; of two, each is drawn as often."""
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[50:52, 50:52, 5] = 13
    drawn, _ = patches_of(labels, (8, 8, 8))
    assert np.mean([bool((patch == 13).any()) for patch in drawn]) == pytest.approx(2 / 3, abs=BOUND)
    labels[5:25, 5:25, 35:55] = 2  # 2000 times as large, and far away
    _, corners = patches_of(labels, (8, 8, 8), share=1.0)
    rare = (np.abs(corners - (46, 46, 1)) <= 1).all(axis=1).mean()
    assert rare == pytest.approx(1 / 2, abs=3 * np.sqrt(1 / 4 / PATCHES))


def test_without_labels_patches_lie_anywhere():
    drawn, corners = patches_of(np.zeros((20, 18, 16), np.uint8), (16, 16, 16))
    assert [set(along) for along in corners.T.tolist()] == [set(range(5)), set(range(3)), {0}]
    assert len(drawn) == PATCHES
