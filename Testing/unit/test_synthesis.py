from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.image import Geometry
from DeepLabSegLib.postprocess import end_label
from DeepLabSegLib.training.head_mri import (
    CONTRASTS,
    LEFT_OF,
    SEGMENTS,
    STEM_END,
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
FLUID = next(segment.value for segment in SEGMENTS if segment.name == "Cerebrospinal fluid")
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


def test_contrasts_share_the_images(label_map):
    dark, bright = (Contrast(0.5, {WHITE: (white,) * 2, GREY: (0.5, 0.5)}) for white in (0.1, 0.9))
    draws, white_is_darker = generator(), 0
    for _ in range(60):
        image, target = synthesize(label_map, (40, 32), (1.0, 1.0), CALM, (dark, bright), draws)
        white_is_darker += int(image[0][target == WHITE].median() < image[0][target == GREY].median())
    assert abs(white_is_darker / 60 - 0.5) < 0.2


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_surrounds_a_head_is_dark_in_its_share_of_the_images_and_of_any_grey_in_the_others(share, label_map):
    draws, dark, middle = generator(), 0, (Contrast(1.0, {WHITE: (0.3, 0.3), GREY: (0.3, 0.3)}),)
    for _ in range(60):
        spec = replace(CALM, texture=0.0, dark_share=share)
        image, target = synthesize(label_map, (48, 48), (1.0, 1.0), spec, middle, draws)
        dark += int(image[0][target == 0].median() < image[0][target == GREY].median() - 0.15)
    assert share - 0.2 < dark / 60 < share + 0.4


@pytest.mark.parametrize("dims", [2, 3])
def test_images_are_centred_well_within_the_focus_and_some_anywhere_in_the_map(dims):
    """Of a map whose labels say their row."""
    rows = torch.arange(48).view(1, 48, 1).expand(48, 48, 48).byte()
    label_map = LabelMap(rows, torch.arange(48), torch.arange(48), (1.0,) * 3, ((0, 20, 0), (47, 40, 47)))

    def centres(share):
        draws, spec = generator(), replace(CALM, anywhere_share=share)
        return [int(synthesize(label_map, (1,) * dims, (1.0,) * dims, spec, (), draws)[1]) for _ in range(60)]

    assert (min(centres(0)), max(centres(0))) == pytest.approx((22, 38), abs=1)
    assert (min(centres(1)), max(centres(1))) == pytest.approx((0, 47), abs=3)


def test_a_thick_slice_averages_over_millimetres_however_fine_its_pixels_are(label_map):
    """White left, grey right, and between both 3 mm of white in grey."""
    structures = torch.full((48, 48, 48), 1)
    structures[..., :20] = 2
    structures[23:26, :, 20:28] = 2
    label_map = replace(label_map, structures=structures.byte(), focus=((24,) * 3,) * 2)
    draws, bright = generator(), (Contrast(1.0, {WHITE: (0.9, 0.9), GREY: (0.3, 0.3)}),)
    spec, shares = replace(CALM, texture=0.0, thickness=(1.0, 5.0)), set()
    for _ in range(20):
        image, _ = synthesize(label_map, (40, 40), (0.5, 0.5), spec, bright, draws)
        white, middle, grey = (float(image[0, 10:30, column].mean()) for column in (4, 19, 36))
        shares.add(round((middle - grey) / (white - grey), 1))
    assert len(shares) == 2
    assert max(shares) == 1
    assert min(shares) < 0.8


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

    def drawn(share, count):
        draws, spec = generator(), replace(CALM, spread_share=share, spread=3.0)
        return [synthesize(label_map, size, (1.0,) * len(size), spec, T1, draws) for _ in range(count)]

    ((_, as_it_is),), pairs = drawn(0, 1), drawn(1, 40)
    sizes = [int((target == WHITE).sum()) for _, target in pairs]
    assert min(sizes) < 0.9 * (as_it_is == WHITE).sum()
    assert max(sizes) > 1.1 * (as_it_is == WHITE).sum()
    for image, target in pairs:
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


def test_white_matter_does_not_fade_towards_what_has_no_label(label_map):
    bare = replace(label_map, classes=torch.tensor([0, 0, WHITE]))
    spec = replace(CALM, fading=(WHITE,), rim=(2.0, 2.0))
    sharp, faded = (
        synthesize(bare, (48, 48), (1.0, 1.0), replace(spec, fade=fade), T1, generator()) for fade in (0.0, 1.0)
    )
    assert torch.equal(sharp[0], faded[0])


def test_growth_and_fading_reach_over_millimetres_however_fine_the_grid_is(label_map):
    label_map = replace(label_map, focus=((24,) * 3,) * 2)
    bright = (Contrast(1.0, {WHITE: (0.8, 0.8), GREY: (0.5, 0.5)}),)

    def drawn(seed, **changes):
        spec = replace(CALM, texture=0.0, fading=(WHITE,), rim=(3.0, 3.0), **changes)
        return synthesize(label_map, (96, 96), (0.5, 0.5), spec, bright, generator(seed))

    grown = [drawn(seed, spread_share=1, spread=6.0)[1] for seed in range(30)]
    area = max(int((target == WHITE).sum()) for target in grown) / 4
    assert np.pi * 15**2 < area < np.pi * 19**2
    (sharp, target), (faded, _) = drawn(3), drawn(3, fade=1.0)
    rim = int((faded[0] < sharp[0] - 0.01)[target == WHITE].sum()) / 4
    assert rim == pytest.approx(np.pi * (13**2 - 10**2), rel=0.2)


@pytest.mark.parametrize("dims", [2, 3])
def test_one_tissue_is_brighter_here_than_there_but_not_than_beside(dims, label_map):
    white, size = replace(label_map, structures=torch.full_like(label_map.structures, 2)), (32,) * dims
    spec = replace(CALM, texture=0.0, bias=0.7)
    spreads = []
    for seed in range(5):
        image, _ = synthesize(white, size, (1.0,) * dims, spec, T1, generator(seed))
        spreads.append(float(image.std()))
        assert float(image.diff(dim=-1).abs().max()) < 0.3
    assert max(spreads) > 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_noise_is_seen_in_the_air_too(dims, label_map):
    air, size = replace(label_map, structures=torch.zeros_like(label_map.structures)), (32,) * dims
    spec = replace(CALM, texture=0.0, noise=0.2)
    spreads = [float(synthesize(air, size, (1.0,) * dims, spec, T1, generator(seed))[0].std()) for seed in range(5)]
    assert max(spreads) > 0.05


@pytest.mark.parametrize("dims", [2, 3])
def test_thick_slices_lie_along_one_axis_of_the_image(dims, label_map):
    """What is rough everywhere becomes smooth across them alone."""
    rough, size = replace(label_map, structures=torch.full_like(label_map.structures, 2)), (40,) * dims
    spec, across = replace(CALM, texture=0.4, thick_share=1.0, thickness=(5.0, 5.0)), set()
    for seed in range(12):
        image, _ = synthesize(rough, size, (1.0,) * dims, spec, T1, generator(seed))
        first, *others = sorted((float(image.diff(dim=axis).abs().mean()), axis) for axis in range(1, dims + 1))
        assert first[0] < 0.5 * others[0][0]
        across.add(first[1])
    assert across == set(range(1, dims + 1))


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
    assert label_map.classes[near] == FLUID
    assert label_map.classes[far] == 0
    assert label_map.tissues[near] == label_map.tissues[far]
    assert label_map.focus == ((28, 8, 8), (51, 31, 31))


def test_a_map_may_have_voxels_of_other_sizes_along_its_axes(head):
    image = sitk.ReadImage(str(head))
    image.SetSpacing((1.0, 1.0, 0.5))
    sitk.WriteImage(image, head)
    label_map = read_head_map(head, "ASR")
    assert label_map.spacing == (1.0, 0.5, 1.0)
    near, far = (int(label_map.structures[20, row, 20]) for row in (27, 24))
    assert label_map.classes[near] == FLUID
    assert label_map.classes[far] == 0


def put_stem(head) -> None:
    """Give the map `head` a brain stem that goes on as cord, and cerebellum down to some height of the stem."""
    image = sitk.ReadImage(str(head))
    image[18:22, 18:22, 20:30] = 16
    image[18:22, 18:22, 4:20] = 512
    image[15:25, 24:30, 25:30] = 8
    sitk.WriteImage(image, head)


def test_a_results_brain_stem_ends_where_that_of_a_label_map_does(head):
    put_stem(head)
    label_map = read_head_map(head, "SAR")
    wanted = label_map.classes[label_map.structures.long()].numpy()
    found, stem = wanted.copy(), wanted[26, 20, 20]
    found[4:25, 18:22, 18:22] = stem
    end_label(found[None], Geometry(found.shape), STEM_END)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("orientation", ["SAR", "ASR", "RAI"])
def test_the_spinal_cord_looks_like_the_brain_stem_and_begins_below_the_cerebellum(head, orientation):
    put_stem(head)
    label_map = read_head_map(head, orientation)
    axis = [letter in "SI" for letter in orientation].index(True)
    upward = label_map.structures.movedim(axis, 0)
    upward = upward if orientation[axis] == "S" else upward.flip(0)
    stem, end, cord = (int(upward[k, 20, 20]) for k in (25, 24, 10))
    assert STRUCTURES[label_map.classes[stem] - 1].name == "Brain stem"
    assert label_map.classes[end] == label_map.classes[cord] == 0
    assert label_map.tissues[stem] == label_map.tissues[end] == label_map.tissues[cord]
    assert label_map.tissues[stem] != label_map.tissues[int(upward[10, 8, 8])]  # fluid


def test_what_surrounds_a_map_has_no_label_even_where_the_map_has_no_such_value(head):
    image = sitk.ReadImage(str(head))
    sitk.WriteImage(image + 2 * sitk.Cast(image == 0, image.GetPixelID()), head)
    label_map = read_head_map(head, "SAR")
    assert label_map.classes[0] == 0
    assert not (label_map.structures == 0).any()


def changed(head, change) -> None:
    """Let `change` have the array of the map `head`, whose header stays."""
    image = sitk.ReadImage(str(head))
    array = sitk.GetArrayFromImage(image)
    altered = sitk.GetImageFromArray(change(array))
    altered.CopyInformation(image)
    sitk.WriteImage(altered, head)


@pytest.mark.parametrize(("whole", "parts"), [(2, (251, 255)), (3, (1000, 1035, 2000, 2035))])
def test_the_parts_of_cortex_and_corpus_callosum_in_freesurfers_maps_are_the_whole(whole, parts, head):
    """Read as no label, they would be holes in what is learned."""
    changed(head, lambda array: np.where(array == 2, whole, array))
    before = read_head_map(head, "SAR")
    values = np.full(40, whole)
    values[12 : 12 + len(parts)] = parts  # the map's columns 10 to 19 hold it
    changed(head, lambda array: np.where(array == whole, values, array))
    after = read_head_map(head, "SAR")
    assert len(after.classes) == len(before.classes) + len(parts)
    for one, other in ((before.classes, after.classes), (before.tissues, after.tissues)):
        assert torch.equal(one[before.structures.long()], other[after.structures.long()])


def test_what_an_oblique_map_does_not_reach_has_no_label_even_where_the_map_has_no_other_value(head):
    changed(head, lambda array: np.where(np.arange(40) < 20, 2, np.full_like(array, 41)))
    image = sitk.ReadImage(str(head))
    image.SetDirection((-0.8, -0.6, 0, 0.6, -0.8, 0, 0, 0, 1))
    sitk.WriteImage(image, head)
    label_map = read_head_map(head, "SAR")
    assert label_map.structures[:, 0, 0].eq(0).all()
    assert label_map.classes.tolist() == [0, 1, 1]
    assert label_map.structures.bool().float().mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [1, 2])
def test_the_intracranial_volume_closes_sulci_and_adds_a_rim(axis, thickness):
    brain = np.zeros((40, 40, 40), bool)
    brain[10:30, 10:30, 10:30] = True
    brain[10:20, 18:22, :] = False
    slices = tuple(slice(None, None, thickness if n == axis else 1) for n in range(3))
    spacing = tuple(float(part.step or 1) for part in slices)
    closed = intracranial(brain[slices], spacing).repeat(thickness, axis)
    assert closed[15, 20, 20]
    assert closed[8, 15, 15]
    assert not closed[6, 15, 15]


def test_a_map_without_brain_is_refused(head, tmp_path):
    sitk.WriteImage(sitk.ReadImage(str(head)) * 0, tmp_path / "none.nii.gz")
    with pytest.raises(InvalidInput, match="holds none of the labels"):
        read_head_map(tmp_path / "none.nii.gz", "SAR")


def test_what_is_no_label_map_is_refused_and_named(head):
    changed(head, lambda array: array + np.float32(0.5))
    with pytest.raises(InvalidInput, match=r"head.nii.gz holds fractions"):
        read_head_map(head, "SAR")
    scan = np.arange(60 * 40 * 40).reshape(60, 40, 40) % 257
    changed(head, lambda _: scan.astype(np.int16))
    with pytest.raises(InvalidInput, match=r"head.nii.gz holds 257 different values; .* at most 256"):
        read_head_map(head, "SAR")
    changed(head, lambda _: (scan % 256).astype(np.int16))
    assert len(read_head_map(head, "SAR").classes) == 256
    image = sitk.ReadImage(str(head))
    sitk.WriteImage(sitk.Compose(image, image), head)
    with pytest.raises(InvalidInput, match=r"head.nii.gz holds 2 numbers per voxel"):
        read_head_map(head, "SAR")


def test_a_pair_of_heads_is_the_same_whenever_it_is_asked_for(head):
    heads = SyntheticHeads([read_head_map(head, "SAR")], (16, 32, 32), (1.0, 1.0, 1.0), seed=3)
    torch.testing.assert_close(heads[7], heads[7], rtol=0, atol=0)
    assert not torch.equal(heads[7][0], heads[8][0])
    other = SyntheticHeads(heads.maps, heads.size, heads.spacing, seed=4)
    assert not torch.equal(heads[8][0], other[7][0])


def test_heads_are_of_all_maps_in_the_groups_and_mirror_images_that_are_asked_for(head):
    left = read_head_map(head, "SAR")
    changed(head, lambda array: np.where(array == 2, 10, array))  # of thalamus, and the other side of white matter
    groups = tuple(range(101, 101 + len(STRUCTURES)))
    heads = SyntheticHeads([left, read_head_map(head, "SAR")], (32,) * 3, (1.0,) * 3, 3, groups, mirror_axes=(2,))
    heads.spec = replace(CALM, mirror_axes=heads.spec.mirror_axes)
    seen, sides = set(), set()
    for index in range(12):
        target = heads[index][1]
        seen |= set(target.unique().tolist())
        white, thalamus = ((target == groups[n]).nonzero().float().mean(0)[2] for n in (0, 7))
        sides.add(bool(white > thalamus)) if (target == groups[7]).any() else None
    assert seen == {0, groups[0], groups[7], groups[16]}
    assert sides == {True, False}


def test_white_matter_of_both_brains_fades():
    assert [STRUCTURES[n - 1].name for n in SyntheticHeads([], (), (), 0).spec.fading] == [
        "Cerebral white matter",
        "Cerebellar white matter",
    ]


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
