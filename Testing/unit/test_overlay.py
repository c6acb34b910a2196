import numpy as np
from helpers import physically_equal

from DeepLabSegLib.image import Geometry, Image, Labels, Segment
from DeepLabSegLib.overlay import MARGIN, render

RED = Segment(1, "Right ball", (255, 0, 0))


def ball(centre_ras: tuple[float, float, float], geometry: Geometry) -> np.ndarray:
    index = np.stack(np.meshgrid(*(np.arange(n) for n in geometry.shape), indexing="ij"), -1)
    points = index @ geometry.affine[:3, :3].T + geometry.affine[:3, 3]
    return np.linalg.norm(points - centre_ras, axis=-1) < 10


def red_columns(picture) -> np.ndarray:
    pixels = np.asarray(picture).astype(int)
    return np.flatnonzero((pixels[..., 0] > pixels[..., 1] + 60).any(axis=0))


def test_the_patients_right_is_on_the_left_however_the_scan_is_stored():
    geometry = Geometry((50, 60, 70), (2.0, 2.0, 2.0), (-70.0, -60.0, -50.0))
    right = ball((40, 0, 0), geometry)
    image = Image((ball((0, 0, 0), geometry) + 2.0 * right)[None], geometry)
    for permutation, flips in [((0, 1, 2), ()), ((2, 0, 1), (0, 2))]:
        stored = physically_equal(image, permutation, flips)
        mask = physically_equal(Image(right.astype(np.uint8), geometry), permutation, flips).array[0]
        labels = Labels(mask, stored.geometry, (RED,))
        picture = render(stored, labels, height=200)
        axial_width = 200 * 140 / 120  # of the pixels' sizes: 140 mm to the side, 120 to the front
        first = red_columns(picture)[0]
        assert MARGIN < first < MARGIN + axial_width / 2
        assert abs(first - (MARGIN + axial_width * (70 - 50) / 140)) < 5


def test_an_empty_result_still_makes_a_picture(scan):
    labels = Labels(np.zeros(scan.geometry.shape, np.uint8), scan.geometry, (RED,))
    assert render(scan, labels, height=100).height > 100
