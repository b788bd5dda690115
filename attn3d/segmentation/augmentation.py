"""Random changes of patches, like those between patients, positions and scanners."""

from collections.abc import Sequence

import numpy as np
import torch
from monai.transforms import RandAdjustContrast, RandBiasField, RandGaussianNoise, RandomizableTransform
from monai.transforms.utils import create_rotate
from torch import Tensor
from torch.nn import functional

from attn3d.segmentation.settings import Configuration

_BIAS = 0.05  # largest coefficient of the bias field, which is smooth over a patch
_NOISE_HU = 3.0
_NOISE = 0.3  # standard deviations of the image


class Augmentation:
    """Random changes of patches. They only depend on the state of the random generator.

    Intensities in Hounsfield units only get noise, since scanners agree otherwise.

    Args:
        configuration: the configuration of the run.
    """

    def __init__(self, configuration: Configuration):
        self.configuration = configuration
        self.hounsfield = configuration.windows is not None
        noise = RandGaussianNoise(prob=1.0, std=_NOISE_HU if self.hounsfield else _NOISE)
        self._intensities: list[tuple[float, RandomizableTransform]] = [(0.3, noise)]
        if not self.hounsfield:
            bias = RandBiasField(prob=1.0, degree=2, coeff_range=(-_BIAS, _BIAS))
            contrast = RandAdjustContrast(prob=1.0, gamma=(0.7, 1.5))
            self._intensities = [(0.3, bias), (0.15, contrast), (0.3, noise)]

    def draw_affine(self, random: np.random.Generator) -> np.ndarray | None:
        """Draws a matrix from voxels of the patch to those of the scan, relative to their centres, or None.

        In mm, so that anisotropic voxels are not sheared, it is Rx Ry Rz diag(scales): rotations about the three axes,
        after a scaling along each.
        """
        config = self.configuration
        if random.random() >= config.warped:
            return None
        angles = np.deg2rad(random.uniform(-config.rotation, config.rotation, 3)).tolist()
        scales = random.uniform(1 - config.scaling, 1 + config.scaling, 3)
        matrix = create_rotate(3, angles)[:3, :3] @ np.diag(scales)
        return matrix * config.spacing / np.array(config.spacing)[:, None]

    def __call__(self, image: Tensor, classes: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Mirrors a patch and changes its intensities.

        The brightness changes last: a random factor multiplies the intensities of each channel above the darkest one.

        Args:
            image: (C, *S).
            classes: (*S).
            random: the random generator.
        """
        axes = [axis for axis in self.configuration.mirror if random.random() < 0.5]
        image, classes = image.flip([axis + 1 for axis in axes]), classes.flip(axes)
        for chance, transform in self._intensities:
            if random.random() < chance:
                transform.set_random_state(int(random.integers(2**32)))
                image = self._changed(image, transform)
        brightness = self.configuration.brightness
        if brightness and random.random() < 0.5:
            factors = random.uniform(1 - brightness, 1 + brightness, (len(image), 1, 1, 1)).astype(np.float32)
            darkest = _darkest(image)
            image = darkest + (image - darkest) * torch.from_numpy(factors)
        return image, classes

    def _changed(self, image: Tensor, transform: RandomizableTransform) -> Tensor:
        """Changes intensities. If they are not Hounsfield units, mean and standard deviation are restored."""
        if self.hounsfield:
            return _plain(transform(image))
        axes = tuple(range(1, image.dim()))
        darkest = _darkest(image)  # a bias field multiplies intensities above the darkest
        changed = _plain(transform(image - darkest))
        deviation, mean = torch.std_mean(image, axes, keepdim=True)
        of_changed, mean_of_changed = torch.std_mean(changed, axes, keepdim=True)
        return (changed - mean_of_changed) * (deviation / of_changed.clamp(min=1e-6)) + mean


def _darkest(image: Tensor) -> Tensor:
    """The lowest intensity of each channel, which is air in most patches, as (C, 1, 1, 1)."""
    return image.amin(tuple(range(1, image.dim())), keepdim=True)


def _plain(image: Tensor | np.ndarray) -> Tensor:
    """Converts to a plain tensor, since a MetaTensor of some of MONAI's transforms cannot be batched with others."""
    return torch.as_tensor(image).as_subclass(Tensor)


def margin(matrix: np.ndarray, size: Sequence[int] | np.ndarray) -> np.ndarray:
    """The additional voxels that a patch needs on each side of each axis to be warped by a matrix."""
    half = np.array(size) / 2
    return np.ceil((np.abs(matrix) @ half - half).clip(min=0)).astype(int)


def warp(image: Tensor, classes: Tensor, matrix: np.ndarray, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Warps an image (linear interpolation) and its classes (nearest neighbour) to a patch.

    If a voxel got the class with the largest interpolated share, lesions that are lines of voxels would become smaller.

    Args:
        image: (C, *larger), the patch with a margin.
        classes: (*larger).
        matrix: from `Augmentation.draw_affine`.
        size: size of the patch.
    """
    larger = np.array(classes.shape)
    relative = (matrix * np.array(size)) / larger[:, None]  # in the coordinates of grid_sample
    theta = np.zeros((1, 3, 4), np.float32)
    theta[0, :, :3] = relative[::-1, ::-1]  # grid_sample has the last axis first
    grid = functional.affine_grid(torch.from_numpy(theta), [1, 1, *size], align_corners=False)
    found = [
        functional.grid_sample(values[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]
        for values, mode in ((image, "bilinear"), (classes[None].float(), "nearest"))
    ]
    return found[0], found[1][0].to(classes.dtype)
