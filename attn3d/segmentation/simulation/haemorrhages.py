"""Five kinds of haemorrhage. Each kind defines a space, and an order in which blood fills the space.

A haemorrhage of a given volume is the part of the space that comes first in this order. This gives the typical shapes:
a lens between skull and dura, a crescent over the convexity, a fluid level in a ventricle, blood between the gyri, a
lump.
"""

import numpy as np

from attn3d.segmentation.simulation.anatomy import Head, edge, smooth_noise

HAEMORRHAGES = {1: "EDH", 2: "IPH", 3: "IVH", 4: "SAH", 5: "SDH"}  # numbered as in BHSD

MEDIAN_ML = {"EDH": 18.0, "IPH": 12.0, "IVH": 8.0, "SAH": 14.0, "SDH": 35.0}
_SPREAD = 0.7  # standard deviation of the logarithm
_LEAST, _MOST = 0.25, 4.0  # limits, as multiples of the median
# In the template's mm, in a shape that broadcasts to `Head.place`.
_BRAIN_CENTRE = np.array((0.0, -18.0, 8.0), np.float32).reshape(3, 1, 1, 1)
_BRAIN_RADII = np.array((70.0, 90.0, 75.0), np.float32).reshape(3, 1, 1, 1)


def draw_volume(random: np.random.Generator, kind: str) -> float:
    """Draws a volume in ml: log-normal, between a quarter of the kind's median and four times the median.

    The labelled volume is smaller: thin parts fill too little of a thick slice, and bright voxels at the skull are not
    labelled. Small haemorrhages may be labelled in a few voxels only.
    """
    return MEDIAN_ML[kind] * float(np.clip(random.lognormal(0, _SPREAD), _LEAST, _MOST))


def bleed(random: np.random.Generator, head: Head, kind: str, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws a haemorrhage: the fraction of each voxel that it fills, and the fraction in the oedema around it.

    ``free`` is the fraction of each voxel that no other haemorrhage fills.
    """
    room, order = _SPACES[kind](random, head)
    room = room * free
    reached = _level(room, order, draw_volume(random, kind) / head.voxel_ml)
    width = random.uniform(4, 9) if kind == "IPH" else 0.0
    halo = edge(reached + width - order, 6.0) * free if width else np.zeros_like(room)
    return room * edge(reached - order), halo


def _level(room: np.ndarray, order: np.ndarray, voxels: float) -> float:
    """The value of ``order`` up to which the space has this many voxels, at most 9 tenths of the space."""
    inside = room > 0.02
    shares, steps = room[inside], order[inside]
    sorting = np.argsort(steps)
    filled = np.cumsum(shares[sorting])
    return float(steps[sorting][np.searchsorted(filled, min(voxels, 0.9 * filled[-1]))])


def _somewhere(random: np.random.Generator, head: Head, where: np.ndarray) -> np.ndarray:
    """The template coordinates of a random voxel of a mask, in a shape that broadcasts to `Head.place`."""
    return head.place.reshape(3, -1)[:, random.choice(np.flatnonzero(where))][:, None, None, None]


def _distance(head: Head, centre: np.ndarray) -> np.ndarray:
    return np.linalg.norm(head.place - centre, axis=0)


def _intraparenchymal(random: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """A lump in the basal ganglia, the white matter of a lobe or the cerebellum."""
    side = random.choice((-1, 1))
    site = random.choice(("deep", "lobe", "cerebellum"), p=(0.45, 0.45, 0.1))
    if site == "lobe":
        centre = _somewhere(random, head, (head.white > 0.7) & (head.depth > 14) & (head.place[2] > 5))
    else:
        middle = (26 * side, -5, 4) if site == "deep" else (20 * side, -62, -34)
        centre = (middle + random.normal(0, 4, 3)).reshape(3, 1, 1, 1)
    turned, _ = np.linalg.qr(random.normal(size=(3, 3)))
    stretched = turned * random.uniform(0.7, 1.3, 3)
    offset = np.tensordot(stretched.T.astype(np.float32), head.place - centre.astype(np.float32), 1)
    order = np.linalg.norm(offset, axis=0) * (1 + 0.2 * smooth_noise(random, head.depth.shape, 14))
    return (head.grey + head.white) * edge(head.depth - 5), order


def _epidural(random: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """A lens: the intersection of the skull's cavity with a ball around a point outside of the skull."""
    lateral = (abs(head.place[0]) > 35) & (head.place[2] > -5) & (head.place[2] < 50)
    surface = _somewhere(random, head, (abs(head.depth) < 1) & lateral)
    normal = (surface - _BRAIN_CENTRE) / _BRAIN_RADII**2
    outside = surface + normal / np.linalg.norm(normal) * random.uniform(12, 30)
    return head.cavity * edge(head.place[2] + 30), _distance(head, outside)


def _subdural(random: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """A crescent over one hemisphere, which becomes thinner with the angle from its start."""
    side = random.choice((-1, 1))
    begin = np.array((side, random.uniform(-0.6, 0.6), random.uniform(0.0, 0.7)), np.float32)
    ray = head.place - _BRAIN_CENTRE
    cosine = np.tensordot(begin / np.linalg.norm(begin), ray, 1) / np.maximum(np.linalg.norm(ray, axis=0), 1)
    angle = np.arccos(np.clip(cosine, -1, 1)) / np.radians(random.uniform(50, 75))
    thickness = random.uniform(8, 14) * (1 + 0.12 * smooth_noise(random, head.depth.shape, 8))
    order = thickness * angle**2 + np.maximum(head.depth, 0)
    return head.cavity * edge(side * head.place[0] - 2) * edge(head.place[2] + 28), order


def _intraventricular(random: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """A fluid level in the ventricles of a supine patient, on both sides or mainly on one."""
    x, y, z = head.place
    one_sided = random.choice((0.0, 40.0), p=(0.6, 0.4)) * random.choice((-1, 1))
    order = y + 0.3 * z + one_sided * np.sign(x) + 4 * smooth_noise(random, head.depth.shape, 10)
    return head.ventricle * head.cavity, order


def _subarachnoid(random: np.random.Generator, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Blood in place of CSF in the cisterns at the base, in a Sylvian fissure or in the sulci of the convexity."""
    side = random.choice((-1, 1))
    site = random.choice(("cisterns", "sylvian", "convexity"))
    if site == "convexity":
        centre = _somewhere(random, head, (abs(head.depth - 6) < 3) & (head.place[2] > 15))
    else:
        centre = np.array((0, -8, -16) if site == "cisterns" else (44 * side, 0, -4))[:, None, None, None]
    noise = smooth_noise(random, head.depth.shape, 10)
    order = _distance(head, centre.astype(np.float32)) + 5 * noise
    distended = np.clip(1.6 * (1 - head.grey - head.white), 0, 1)  # blood widens the sulci that it fills
    return distended * (1 - head.ventricle) * head.cavity, order


_SPACES = {"EDH": _epidural, "IPH": _intraparenchymal, "IVH": _intraventricular, "SAH": _subarachnoid, "SDH": _subdural}
