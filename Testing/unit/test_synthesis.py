from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.training.head_mri import (
    CONTRASTS,
    LEFT_OF,
    SEGMENTS,
    STRUCTURES,
    SyntheticHeads,
    intracranial,
    read_head_map,
)
from DeepLabSegLib.training.jobs import make_job
from DeepLabSegLib.training.options import TrainOptions, quiet
from DeepLabSegLib.training.processes import Processes
from DeepLabSegLib.training.synthesis import Contrast, LabelMap, SynthesisSpec, synthesize

CALM = SynthesisSpec(
    rotation=0,
    scale=0,
    elastic=0,
    mirror_axes=(),
    spread_share=0,
    fade=0,
    anywhere_share=0,
    bias=0,
    noise=0,
    gamma=0,
    thick_share=0,
    resolution=(1.0, 1.0),
    thickness=(1.0, 1.0),
    dark_share=1.0,
)
WHITE, GREY = 1, 2
T1, T2, FLAIR = ((replace(contrast, share=1.0),) for contrast in CONTRASTS)


@pytest.fixture
def label_map() -> LabelMap:
    """A ball of white matter in a shell of grey, in air."""
    axes = np.meshgrid(*(np.arange(48) - 23.5,) * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    structures = torch.from_numpy((radius < 20).astype(np.uint8) + (radius < 13))
    return LabelMap(
        structures, torch.tensor([0, GREY, WHITE]), torch.arange(3), (1.0, 1.0, 1.0), ((20, 20, 20), (28, 28, 28))
    )


def generator(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(40, 32), (24, 40, 32)])
def test_a_synthesised_pair_shows_what_its_labels_say(size, label_map):
    draws = generator()
    for _ in range(4):
        image, target = synthesize(label_map, size, (1.0,) * len(size), CALM, T1, draws)
        assert image.shape == (1, *size)
        assert target.shape == size
        assert (image.dtype, target.dtype) == (torch.float32, torch.int64)
        assert 0 <= image.min() <= image.max() <= 1
        white, grey, air = (image[0][target == n].median() for n in (WHITE, GREY, 0))
        assert white > grey > air


@pytest.mark.parametrize("size", [(32, 32), (16, 32, 32)])
def test_the_same_seed_draws_the_same_pair_and_another_seed_another(size, label_map):
    a, b, c = (
        synthesize(label_map, size, (1.0,) * len(size), SynthesisSpec(), T1, generator(seed)) for seed in (5, 5, 6)
    )
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(a[0], c[0])


@pytest.mark.parametrize(("contrast", "white_is_brighter"), [(T1, True), (T2, False), (FLAIR, False)])
def test_white_matter_is_brighter_than_grey_in_t1_alone(contrast, white_is_brighter, label_map):
    draws, brighter = generator(), 0
    for _ in range(20):
        image, target = synthesize(label_map, (40, 32), (1.0, 1.0), CALM, contrast, draws)
        brighter += int(image[0][target == WHITE].median() > image[0][target == GREY].median())
    assert brighter >= 16 if white_is_brighter else brighter <= 4


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_contrast_is_seen_in_its_share_of_the_images(share, label_map):
    dark = (Contrast(share, {WHITE: (0.0, 0.0), GREY: (0.9, 0.9)}),)
    draws, seen = generator(), 0
    for _ in range(60):
        image, target = synthesize(label_map, (40, 32), (1.0, 1.0), replace(CALM, texture=0.0), dark, draws)
        seen += int(image[0][target == WHITE].median() < 0.05 * image[0][target == GREY].median())
    assert abs(seen / 60 - share) < 0.2


def test_a_thick_slice_has_the_label_of_most_that_lies_within_it(label_map):
    """White left, grey right, and between both what is white from one height on."""
    structures = torch.full((48, 48, 48), 1)
    structures[..., :16] = 2
    structures[24:, :, 16:32] = 2
    label_map = replace(label_map, structures=structures.byte(), focus=((20, 24, 24), (28, 24, 24)))
    draws, bright = generator(), (Contrast(1.0, {WHITE: (0.9, 0.9), GREY: (0.3, 0.3)}),)
    spec = replace(CALM, texture=0.0, thickness=(1.0, 5.0))
    shares = set()
    for _ in range(40):
        image, target = synthesize(label_map, (40, 40), (1.0, 1.0), spec, bright, draws)
        white, middle, grey = (float(image[0, 10:30, column].mean()) for column in (5, 20, 35))
        share = (middle - grey) / (white - grey)
        assert (share > 0.5) == bool(target[20, 20] == WHITE)
        assert abs(share - 0.5) > 0.05
        shares.add(round(share, 1))
    assert len(shares) > 3


@pytest.mark.parametrize("size", [(24, 24), (24, 24, 24)])
def test_a_window_of_air_stays_dark(size, label_map):
    air = replace(label_map, structures=torch.zeros_like(label_map.structures))
    for seed in range(4):
        image, target = synthesize(air, size, (1.0,) * len(size), replace(CALM, noise=0.04), T1, generator(seed))
        assert float(image.max()) < 0.6
        assert not target.any()


def test_a_finer_grid_shows_the_same_thing_larger(label_map):
    _, coarse = synthesize(label_map, (24, 24, 24), (2, 2, 2), CALM, T1, generator())
    _, fine = synthesize(label_map, (48, 48, 48), (1, 1, 1), CALM, T1, generator())
    assert (coarse > 0).sum() * 8 == pytest.approx(int((fine > 0).sum()), rel=0.1)


@pytest.mark.parametrize("size", [(48, 48), (48, 48, 48)])
def test_a_structure_may_be_thicker_or_thinner_than_in_the_map_and_the_image_shows_it(size, label_map):
    label_map = replace(label_map, focus=((24,) * 3,) * 2)

    def drawn(share):
        draws, spec = generator(), replace(CALM, spread_share=share, spread=3.0)
        return [synthesize(label_map, size, (1.0,) * len(size), spec, T1, draws) for _ in range(40)]

    (_, as_it_is), *_ = drawn(0)
    sizes = [int((target == WHITE).sum()) for _, target in drawn(1)]
    assert min(sizes) < 0.9 * (as_it_is == WHITE).sum()
    assert max(sizes) > 1.1 * (as_it_is == WHITE).sum()
    for image, target in drawn(1):
        assert ((target == 0) == (as_it_is == 0)).all()  # what has no label keeps its place
        white, grey = (image[0][target == n].median() for n in (WHITE, GREY))
        assert white > grey


@pytest.mark.parametrize("size", [(48, 48), (48, 48, 48)])
def test_white_matter_fades_at_its_edge_and_stays_white_matter(size, label_map):
    spec = replace(CALM, fading=(WHITE,), rim=(2.0, 2.0), fade=0.0, texture=0.0)
    bright = (Contrast(1.0, {WHITE: (0.8, 0.8), GREY: (0.5, 0.5)}),)
    sharp, faded = (
        [
            synthesize(label_map, size, (1.0,) * len(size), replace(spec, fade=fade), bright, generator(seed))
            for seed in range(4)
        ]
        for fade in (0.0, 1.0)
    )
    for (image, target), (other, same) in zip(sharp, faded, strict=True):
        assert torch.equal(target, same)
        white = target == WHITE
        assert (other[0][white] < image[0][white] - 0.01).sum() > 20
        assert (other[0][~white] <= image[0][~white] + 0.05).all()


@pytest.fixture
def head(tmp_path):
    """A box of brain with fluid around it and far below, in RAS, as a file."""
    array = np.zeros((60, 40, 40), np.int16)
    array[2:58, 5:35, 5:35] = 24
    array[30:50, 10:30, 10:20] = 2
    array[30:50, 10:30, 20:30] = 41
    array[0] = 515
    image = sitk.GetImageFromArray(array)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS
    path = tmp_path / "head.nii.gz"
    sitk.WriteImage(image, path)
    return path


def test_a_label_map_is_turned_to_the_models_orientation_with_both_sides_alike(head):
    label_map = read_head_map(head, "ASR")
    assert label_map.structures.shape == (40, 60, 40)
    middle = label_map.structures[20, 40]
    left, right = int(middle[12]), int(middle[28])
    assert left != right
    assert label_map.classes[left] == label_map.classes[right] == WHITE
    assert label_map.tissues[left] == label_map.tissues[right]


def test_fluid_far_from_the_brain_looks_like_fluid_and_has_no_label(head):
    label_map = read_head_map(head, "SAR")
    near, far = (int(label_map.structures[k, 20, 20]) for k in (29, 10))
    assert STRUCTURES[label_map.classes[near] - 1].name == "Cerebrospinal fluid"
    assert label_map.classes[far] == 0
    assert label_map.tissues[near] == label_map.tissues[far]
    assert label_map.focus[0][0] > 25


@pytest.mark.parametrize("orientation", ["SAR", "ASR", "RAI"])
def test_the_spinal_cord_looks_like_the_brain_stem_and_begins_below_the_cerebellum(head, orientation):
    image = sitk.ReadImage(str(head))
    image[18:22, 18:22, 20:30] = 16
    image[18:22, 18:22, 4:20] = 512
    image[15:25, 24:30, 25:30] = 8
    sitk.WriteImage(image, head)
    label_map = read_head_map(head, orientation)
    axis = [letter in "SI" for letter in orientation].index(True)
    upward = label_map.structures.movedim(axis, 0)
    upward = upward if orientation[axis] == "S" else upward.flip(0)
    stem, end, cord = (int(upward[k, 20, 20]) for k in (27, 22, 10))
    assert STRUCTURES[label_map.classes[stem] - 1].name == "Brain stem"
    assert label_map.classes[end] == label_map.classes[cord] == 0
    assert label_map.tissues[stem] == label_map.tissues[end] == label_map.tissues[cord]


def test_what_surrounds_a_map_has_no_label_even_where_the_map_has_no_such_value(head):
    image = sitk.ReadImage(str(head))
    sitk.WriteImage(image + 2 * sitk.Cast(image == 0, image.GetPixelID()), head)
    label_map = read_head_map(head, "SAR")
    assert label_map.classes[0] == 0
    assert not (label_map.structures == 0).any()


def test_the_intracranial_volume_closes_sulci_and_adds_a_rim():
    brain = np.zeros((40, 40, 40), bool)
    brain[10:30, 10:30, 10:30] = True
    brain[10:20, 18:22, :] = False
    closed = intracranial(brain, (1.0, 1.0, 1.0))
    assert closed[15, 20, 20]
    assert closed[8, 15, 15]
    assert not closed[6, 15, 15]


def test_a_map_without_brain_is_refused(head, tmp_path):
    sitk.WriteImage(sitk.ReadImage(str(head)) * 0, tmp_path / "none.nii.gz")
    with pytest.raises(InvalidInput, match="holds none of the labels"):
        read_head_map(tmp_path / "none.nii.gz", "SAR")


def test_a_pair_of_heads_is_the_same_whenever_it_is_asked_for(head):
    heads = SyntheticHeads([read_head_map(head, "SAR")], (16, 32, 32), (1.0, 1.0, 1.0), seed=3)
    torch.testing.assert_close(heads[7], heads[7], rtol=0, atol=0)
    assert not torch.equal(heads[7][0], heads[8][0])


def test_images_are_made_where_the_network_learns(head):
    elsewhere = Processes(0, 1, torch.device("meta"))  # stands for a GPU: nothing is computed on it

    def job(**training):
        options = TrainOptions(recipe="head-mri", training=training)
        return make_job(head.parent, "model", head.parent, options, elsewhere, quiet)

    assert job().training.workers == 0
    assert job().pairs.maps[0].structures.device == elsewhere.device
    assert job().pairs.maps[0].classes.device.type == "cpu"
    with pytest.raises(InvalidInput, match="workers is 2, but meta makes its images itself"):
        job(workers=2)


def test_every_source_value_belongs_to_one_structure_and_every_structure_has_a_label():
    values = [value for structure in STRUCTURES for value in structure.sources]
    assert len(values) == len(set(values))
    assert [segment.name for segment in SEGMENTS] == [structure.name for structure in STRUCTURES]
    assert len({segment.color for segment in SEGMENTS}) == len(SEGMENTS)
    for right, left in LEFT_OF.items():
        assert any(right in s.sources and left in s.sources for s in STRUCTURES), (left, right)
