"""Patches: position, content, reproducibility from the seed, and augmentation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from attn3d.segmentation.augmentation import Augmentation, margin, warp
from attn3d.segmentation.patches import EpochSampler, PatchData, Patches, draw_corner, read_box
from attn3d.segmentation.preprocessing import PreparedCase

PATCHES = 900
BOUND = 3 * np.sqrt(2 / 9 / PATCHES)  # three standard deviations of a share of two thirds


def settings(**changed):
    """Settings of a run without warped or mirrored patches, of an image without windows."""
    plain = {"spacing": (1.0, 1.0, 1.0), "mirror": (), "windows": None}
    plain |= dict.fromkeys(("warped", "rotation", "scaling", "brightness"), 0.0)
    return SimpleNamespace(**plain | changed)


def write(folder, labels, name="case", image=None, ignore=None):
    """Writes a prepared case."""
    tensors = {"image": labels[None].astype(np.float32) if image is None else image, "label": labels}
    for value in np.unique(labels[(labels > 0) & (labels != ignore)]):
        tensors[f"foreground {value}"] = np.flatnonzero(labels == value).astype(np.int32)
    if ignore is not None:
        tensors["annotated"] = np.flatnonzero(labels != ignore).astype(np.int32)
    save_file(tensors, folder / f"{name}.safetensors")
    return PreparedCase(SimpleNamespace(name=name), folder)


def patches_of(folder, labels, size, share=2 / 3, ignore=None):
    """Draws many patches; returns their labels and corners."""
    random = np.random.default_rng(0)
    with write(folder, labels, ignore=ignore).open() as file:
        corners = np.array([draw_corner(file, np.array(size), share, random) for _ in range(PATCHES)])
        drawn = [read_box(file, "label", corner, np.array(size)) for corner in corners]
    assert all(patch.shape == size for patch in drawn)
    assert (corners >= 0).all()
    assert (corners + size <= np.array(labels.shape)).all()
    return drawn, corners


@pytest.mark.parametrize("place", [(40, 40, 1), (30, 78, 1), (79, 79, 29), (40, 40, 15)], ids=str)
def test_two_of_three_patches_hold_the_label_at_any_place(place, tmp_path):
    """Two thirds are drawn around the label, in slice 1 of 30 as well as in the middle; others hold it by chance."""
    labels = np.zeros((80, 80, 30), np.uint8)
    labels[place] = 1
    drawn, corners = patches_of(tmp_path, labels, (16, 16, 16))
    holding = np.array([bool(patch.any()) for patch in drawn])
    by_chance = np.prod([min(16, place[i] + 1, labels.shape[i] - place[i]) / (labels.shape[i] - 15) for i in range(3)])
    assert holding.mean() == pytest.approx(2 / 3 + by_chance / 3, abs=BOUND)
    expected = np.clip(np.array(place) - 8, 0, np.array(labels.shape) - 16)
    assert (corners == expected).all(axis=1).mean() == pytest.approx(2 / 3, abs=BOUND), "centred, or at the border"


def test_the_share_is_of_the_labels_that_a_case_has(tmp_path):
    """With one of thirteen labels, two of three patches hold it; of two labels, each is drawn equally often."""
    labels = np.zeros((60, 60, 60), np.uint8)
    labels[50:52, 50:52, 5] = 13
    drawn, _ = patches_of(tmp_path, labels, (8, 8, 8))
    assert np.mean([bool((patch == 13).any()) for patch in drawn]) == pytest.approx(2 / 3, abs=BOUND)
    labels[5:25, 5:25, 35:55] = 2  # a label 2000 times as large, far away
    _, corners = patches_of(tmp_path, labels, (8, 8, 8), share=1.0)
    rare = (np.abs(corners - (46, 46, 1)) <= 1).all(axis=1).mean()
    assert rare == pytest.approx(1 / 2, abs=3 * np.sqrt(1 / 4 / PATCHES))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_middle_of_a_patch_is_not_ignored(share, tmp_path):
    """Only a few planes are annotated, with a label in them; patches are centred on annotated voxels."""
    label = np.full((30, 30, 30), 4, np.uint8)
    label[:, :, 14:16] = 0
    label[10:12, 10:12, 14] = 3
    drawn, corners = patches_of(tmp_path, label, (6, 6, 6), share, ignore=4)
    assert all((patch != 4).any() for patch in drawn)
    assert set(corners[:, 2]) <= {11, 12}
    assert all(patch[3, 3, 3] != 4 for patch, corner in zip(drawn, corners, strict=True) if 0 < corner.min() < 24)
    holding = np.mean([bool((patch == 3).any()) for patch in drawn])
    by_chance = 7**2 / 30**2  # share of the centres, including those at the border
    assert holding == pytest.approx(share + (1 - share) * by_chance, abs=3 * np.sqrt(1 / 4 / PATCHES))


def test_without_labels_patches_lie_anywhere(tmp_path):
    drawn, corners = patches_of(tmp_path, np.zeros((20, 18, 16), np.uint8), (16, 16, 16))
    assert [set(along) for along in corners.T.tolist()] == [set(range(5)), set(range(3)), {0}]
    assert len(drawn) == PATCHES


def test_a_scan_smaller_than_a_patch_is_centred_and_padded_with_its_edges(tmp_path):
    labels = np.ones((4, 20, 5), np.uint8)
    labels[0], labels[-1] = 2, 3
    size = np.array((8, 8, 8))
    with write(tmp_path, labels).open() as file:
        corner = draw_corner(file, size, 2 / 3, np.random.default_rng(0))
        found = read_box(file, "label", corner, size)
    assert [corner[0], corner[2]] == [-2, -1], "as in MONAI's sliding windows"
    assert found.shape == (8, 8, 8)
    assert found[:, 0, 0].tolist() == [2, 2, 2, 1, 1, 3, 3, 3]


@pytest.mark.parametrize("corner", [(-3, 2, 9), (0, 0, 0), (5, 7, -1)], ids=str)
def test_a_box_is_padded_as_by_numpy(corner, tmp_path):
    values = np.random.default_rng(0).integers(0, 9, (9, 11, 10)).astype(np.uint8)
    with write(tmp_path, values).open() as file:
        found = read_box(file, "image", np.array(corner), np.array((6, 5, 7)))[0].numpy()
    start = np.array(corner) + 9
    expected = np.pad(values, 9, mode="edge")[tuple(slice(a, a + b) for a, b in zip(start, (6, 5, 7), strict=True))]
    np.testing.assert_array_equal(found, expected)


def configuration(**settings):
    given = {"seed": 3, "patch_size": (8, 8, 8), "spacing": (1.0, 1.0, 1.0), "windows": None, "mirror": (0,)}
    given |= {"warped": 0.3, "rotation": 10.0, "scaling": 0.1, "brightness": 0.2}
    return SimpleNamespace(**given | {"patches_per_case": 3, "around_labels": 2 / 3} | settings)


def test_a_patch_depends_only_on_seed_epoch_and_index(tmp_path):
    random = np.random.default_rng(1)
    labels = random.integers(0, 3, (20, 20, 20)).astype(np.uint8)
    cases = [write(tmp_path, labels, name, random.normal(size=(1, 20, 20, 20)).astype("f4")) for name in "ab"]
    patches = Patches(cases, configuration())
    places = [(epoch, index) for epoch in range(2) for index in range(len(patches))]
    first = {place: patches[place] for place in places}
    again = Patches(cases, configuration())
    for place in reversed(places):
        assert torch.equal(first[place]["image"], again[place]["image"])
        assert torch.equal(first[place]["label"], again[place]["label"])
    images = [patch["image"] for patch in first.values()]
    assert not any(torch.equal(images[0], other) for other in images[1:])
    other = Patches(cases, configuration(seed=4))[0, 0]
    assert not torch.equal(other["image"], images[0])
    assert [first[0, index]["name"] for index in range(6)] == ["a", "b"] * 3
    assert first[0, 0]["image"].shape == first[0, 0]["label"].shape == (1, 8, 8, 8)
    assert (first[0, 0]["image"].dtype, first[0, 0]["label"].dtype) == (torch.float32, torch.uint8)


def test_batches_have_the_size_of_the_settings(tmp_path):
    case = write(tmp_path, np.zeros((20, 20, 20), np.uint8))
    made = PatchData(configuration(patches_per_case=6, batch_size=3), None, [], [], tmp_path, quiet=True)
    made.training, made.trainer = [case], SimpleNamespace(world_size=1, global_rank=0)
    assert [len(batch["image"]) for batch in made.train_dataloader()] == [3, 3]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_patches_are_around_labels_as_often_as_set(share, tmp_path):
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[20, 20, 20] = 1
    patches = Patches([write(tmp_path, labels)], configuration(around_labels=share, patches_per_case=60, warped=0.0))
    holding = np.mean([bool(patches[0, index]["label"].any()) for index in range(60)])
    assert holding == 1 if share else holding < 0.2


def test_ranks_share_an_epoch_and_epochs_differ():
    samplers = [EpochSampler(range(10), num_replicas=2, rank=rank, seed=1) for rank in (0, 1)]
    first = [list(sampler) for sampler in samplers]
    assert sorted(first[0] + first[1]) == [(0, index) for index in range(10)]
    for sampler in samplers:
        sampler.set_epoch(1)
    second = [list(sampler) for sampler in samplers]
    assert {epoch for epoch, _ in second[0]} == {1}
    assert [index for _, index in second[0]] != [index for _, index in first[0]]


def test_an_affine_turns_image_and_label_in_millimetres():
    """A ball in voxels of 1 x 1 x 2 mm remains a ball, with the size given by the matrix."""
    spacing = np.array((1.0, 1.0, 2.0))
    augmentation = Augmentation(settings(spacing=spacing, warped=1.0, rotation=10.0, scaling=0.1))
    shape = np.array((96, 96, 48))
    place = (np.moveaxis(np.indices(shape), 0, -1) - (shape - 1) / 2) * spacing
    classes = torch.from_numpy((np.linalg.norm(place, axis=-1) < 16).astype(np.uint8))
    random = np.random.default_rng(0)
    for _ in range(5):
        matrix = augmentation.draw_affine(random)
        size = np.array((48, 44, 24))
        more = margin(matrix, size)
        low = (shape - size) // 2 - more
        box = tuple(slice(a, a + b) for a, b in zip(low, size + 2 * more, strict=True))
        image, label = warp(classes[box][None].float(), classes[box], matrix, size.tolist())
        assert image.shape[1:] == label.shape == tuple(size)
        expected = classes.sum() / np.linalg.det(matrix)
        assert label.sum().item() == pytest.approx(expected.item(), rel=0.06)
        assert image.sum().item() == pytest.approx(expected.item(), rel=0.03)
        inside = (label > 0).nonzero().double().numpy()
        np.testing.assert_allclose(inside.mean(axis=0), (size - 1) / 2, atol=0.3)
        widths = (inside.max(axis=0) - inside.min(axis=0) + 1) * spacing
        assert (np.abs(widths - 32 / np.cbrt(np.linalg.det(matrix))) < 8).all()


def test_an_affine_rotates_about_each_axis_in_turn_after_scaling():
    wide = settings(spacing=(1.0, 2.0, 5.0), warped=1.0, rotation=30.0, scaling=0.2)
    drawn = Augmentation(wide).draw_affine(np.random.default_rng(0))
    random = np.random.default_rng(0)
    random.random()
    (a, b, c), scales = np.deg2rad(random.uniform(-30, 30, 3)), random.uniform(0.8, 1.2, 3)
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
    in_mm = np.linalg.multi_dot([about_x, about_y, about_z, np.diag(scales)])
    to_mm = np.diag((1.0, 2.0, 5.0))
    np.testing.assert_allclose(to_mm @ drawn @ np.linalg.inv(to_mm), in_mm, atol=1e-12)


@pytest.mark.parametrize(("warped", "rotation", "scaling"), [(0.3, 10.0, 0.1), (0.5, 20.0, 0.2), (0.5, 0.0, 0.2)])
def test_rotations_and_scales_fill_their_ranges(warped, rotation, scaling):
    augmentation = Augmentation(settings(warped=warped, rotation=rotation, scaling=scaling))
    random = np.random.default_rng(0)
    drawn = [augmentation.draw_affine(random) for _ in range(2000)]
    found = [matrix for matrix in drawn if matrix is not None]
    assert len(found) / len(drawn) == pytest.approx(warped, abs=0.04)
    scales = np.array([np.linalg.norm(matrix, axis=0) for matrix in found])
    assert scales.min() == pytest.approx(1 - scaling, abs=0.01)
    assert scales.max() == pytest.approx(1 + scaling, abs=0.01)
    turns = np.array([matrix / scale for matrix, scale in zip(found, scales, strict=True)])
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-9)
    angles = np.rad2deg(np.arctan2(-turns[:, 1, 2], turns[:, 2, 2]))  # about the first axis
    assert np.abs(angles).max() == pytest.approx(rotation, abs=0.5)


def test_the_identity_and_a_shifted_axis_are_exact():
    image = torch.arange(7.0 * 6 * 5).view(1, 7, 6, 5)
    same, label = warp(image, image[0].to(torch.uint8), np.eye(3), (7, 6, 5))
    torch.testing.assert_close(same, image)
    assert torch.equal(label, image[0].to(torch.uint8))
    turned, _ = warp(image.view(1, 7, 6, 5)[:, :5, :5], torch.zeros(5, 5, 5), -np.eye(3), (5, 5, 5))
    torch.testing.assert_close(turned, image[:, :5, :5].flip(1, 2, 3))
    assert (margin(np.eye(3) * 1.25, (8, 4, 9)) == (1, 1, 2)).all()


def test_lesions_that_are_lines_of_voxels_keep_their_volume():
    classes = torch.zeros(32, 32, 24, dtype=torch.uint8)
    classes[::3, ::3] = 2
    angle = np.deg2rad(20)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    share, label = warp((classes[None] == 2).float(), classes, matrix, (24, 24, 24))
    assert (label == 2).sum().item() == pytest.approx(share.sum().item(), rel=0.05)
    assert (share > 0.5).sum() < 0.8 * share.sum()  # the voxels of which they have the largest share


@pytest.mark.parametrize("axes", [(), (0,), (1, 2)], ids=str)
def test_patches_are_mirrored_along_the_given_axes(axes):
    augmentation = Augmentation(settings(mirror=axes, windows=((40.0, 80.0),)))
    augmentation._intensities = []
    image = torch.arange(27.0).view(1, 3, 3, 3)
    random, seen = np.random.default_rng(0), set()
    for _ in range(40):
        changed, classes = augmentation(image, image[0], random)
        assert torch.equal(changed[0], classes)
        (found,) = [
            flipped
            for flipped in [(), (1,), (2,), (3,), (1, 2), (1, 3), (2, 3), (1, 2, 3)]
            if torch.equal(image.flip(flipped), changed)
        ]
        seen.add(tuple(axis - 1 for axis in found))
    one = [tuple(chosen) for chosen in ((), axes[:1], axes[1:], axes)]
    assert seen == set(one)


@pytest.mark.parametrize("windows", [None, ((40.0, 80.0),)])
def test_some_patches_keep_their_intensities(windows):
    random = np.random.default_rng(0)
    image = torch.from_numpy(random.normal(size=(2, 12, 12, 12)).astype(np.float32))
    augmentation = Augmentation(settings(windows=windows))
    changed = [augmentation(image, image[0], random)[0] for _ in range(20)]
    assert 3 < sum(torch.equal(one, image) for one in changed) < 17
    assert all(one.isfinite().all() and one.dtype == torch.float32 for one in changed)


def test_noise_and_contrast_are_slight():
    """The noise has a standard deviation of up to 0.3, and an exponent of the contrast is from 0.7 to 1.5."""
    _, (_, contrast), (_, noise) = Augmentation(settings())._intensities
    image = torch.linspace(0, 1, 20**3).view(1, 20, 20, 20)
    exponents, deviations = [], []
    for seed in range(60):
        for transform in (contrast, noise):
            transform.set_random_state(seed)
        deviations.append((torch.as_tensor(noise(image)) - image).std())
        middle = torch.as_tensor(contrast(image)).flatten()[4000]
        exponents.append(torch.log(middle) / torch.log(image.flatten()[4000]))
    assert 0.25 < max(deviations) < 0.31
    assert 0.7 <= min(exponents) < 0.8
    assert 1.4 < max(exponents) <= 1.51


@pytest.mark.parametrize("windows", [None, ((40.0, 80.0),)])
def test_every_change_of_intensities_gives_a_plain_tensor(windows):
    """A MetaTensor could not be collated with plain tensors."""
    augmentation = Augmentation(settings(windows=windows))
    for _, transform in augmentation._intensities:
        transform.set_random_state(0)
        assert type(augmentation._changed(torch.randn(1, 6, 6, 6), transform)) is torch.Tensor, transform


def test_a_bias_field_keeps_the_contrast_of_tissues():
    """It varies as little over a patch as that of a coil; a stronger one would make grey matter look like white."""
    (_, bias), *_ = Augmentation(settings())._intensities
    ratios = []
    for seed in range(40):
        bias.set_random_state(seed)
        field = torch.as_tensor(bias(torch.ones(1, 12, 12, 12)))
        ratios.append(float(field.max() / field.min()))
    assert 1.05 < np.median(ratios) < 1.5
    assert max(ratios) < 2


def test_a_bias_field_multiplies_each_image_above_its_darkest_voxel():
    augmentation = Augmentation(settings())
    (_, bias), *_ = augmentation._intensities
    bias.set_random_state(0)
    image = torch.rand(1, 12, 12, 12, generator=torch.manual_seed(0))
    changed = augmentation._changed(torch.cat([image, image + 100]), bias)
    torch.testing.assert_close(changed[1] - 100, changed[0], atol=1e-3, rtol=0)


def test_brightness_multiplies_each_image_above_its_darkest_voxel_in_half_of_the_patches():
    augmentation = Augmentation(settings(brightness=0.2))
    augmentation._intensities = []
    random = np.random.default_rng(0)
    image = torch.rand(1, 6, 6, 6, generator=torch.manual_seed(0)) - 5
    image = torch.cat([image, 3 * image])
    factors = []
    for _ in range(200):
        changed, _ = augmentation(image, image[0], random)
        assert changed.dtype == torch.float32
        darkest, brightest = image.flatten(1).min(1), image.flatten(1).max(1)
        at = brightest.indices
        factor = (changed.flatten(1)[[0, 1], at] - darkest.values) / (brightest.values - darkest.values)
        torch.testing.assert_close(
            changed,
            (image - darkest.values.view(2, 1, 1, 1)) * factor.view(2, 1, 1, 1) + darkest.values.view(2, 1, 1, 1),
        )
        factors.append(factor)
    factors = torch.stack(factors)
    changed = (factors - 1).abs().amax(1) > 1e-4
    assert 80 < changed.sum() < 120
    assert factors[changed].min() == pytest.approx(0.8, abs=0.02)
    assert factors[changed].max() == pytest.approx(1.2, abs=0.02)
    assert (factors[changed][:, 0] - factors[changed][:, 1]).abs().mean() > 0.05, "independent for each image"


def test_a_prepared_file_is_read_in_part(tmp_path):
    labels = np.zeros((9, 9, 9), np.uint8)
    write(tmp_path, labels)
    with safe_open(tmp_path / "case.safetensors", "np") as file:
        assert [*file.keys()] == ["image", "label"]
