import numpy as np
import pytest
import SimpleITK as sitk
import torch
from helpers import make_spec

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.training.head_mri import CLASSES, FREESURFER, SEGMENTS, T1_PRIOR
from DeepLabSegLib.training.synthesis import LabelMap, SynthesisSpec, read_label_map, synthesize
from DeepLabSegLib.training.trainer import TrainingSpec, dice_cross_entropy, train


@pytest.fixture
def label_map() -> LabelMap:
    """A ball of white matter (2) in a shell of grey (3), in air."""
    axes = np.meshgrid(*(np.arange(48) - 23.5,) * 3, indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    structures = (radius < 20).astype(np.uint8) + (radius < 13)
    return LabelMap(structures, (0, 3, 2), (1.0, 1.0, 1.0), (4, 43))


@pytest.mark.parametrize("size", [(40, 32), (24, 40, 32)])
def test_a_synthesised_pair_shows_what_its_labels_say(size, label_map, rng):
    calm = SynthesisSpec(rotation=0, scale=0, shift=0, elastic=0, bias=0, noise=0, gamma=0,
                         resolution=(1.0, 1.0), thickness=(1.0, 1.0), prior_share=1.0, background_dark=1.0)  # fmt: skip
    for _ in range(4):
        image, target = synthesize(label_map, CLASSES, size, (1.0,) * len(size), rng, calm, T1_PRIOR)
        assert image.shape == (1, *size)
        assert target.shape == size
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        if {3, 4} <= set(np.unique(target)):
            grey, white = (np.median(image[0][target == n]) for n in (3, 4))
            assert white > grey > np.median(image[0][target == 0])


def test_the_same_seed_draws_the_same_pair(label_map):
    pairs = [
        synthesize(label_map, CLASSES, (32, 32), (1, 1), np.random.default_rng(5), SynthesisSpec(), T1_PRIOR)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(pairs[0][0], pairs[1][0])
    np.testing.assert_array_equal(pairs[0][1], pairs[1][1])


def test_a_label_map_is_turned_to_the_models_orientation(tmp_path):
    array = np.zeros((6, 8, 10), np.int16)
    array[1, :, :] = 2
    array[4, :, :] = 530
    image = sitk.GetImageFromArray(array)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))  # RAS
    sitk.WriteImage(image, tmp_path / "map.nii.gz")
    label_map = read_label_map(tmp_path / "map.nii.gz", "ASR", CLASSES)
    assert label_map.structures.shape == (8, 6, 10)
    assert label_map.values == (0, 2, 530)
    assert (label_map.structures[:, 1] == 1).all()
    assert label_map.centre_range == (0, 7)
    sitk.WriteImage(image * 0, tmp_path / "none.nii.gz")
    with pytest.raises(InvalidInput, match="holds none of the labels"):
        read_label_map(tmp_path / "none.nii.gz", "ASR", CLASSES)


def test_every_structure_belongs_to_one_class_and_every_class_has_a_label():
    values = [value for values in FREESURFER.values() for value in values]
    assert len(values) == len(set(values))
    assert [segment.value for segment in SEGMENTS] == list(FREESURFER)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_zero_for_certainty_and_large_for_error(dims):
    target = torch.randint(0, 3, (2, *(8,) * dims))
    sure = torch.nn.functional.one_hot(target, 3).movedim(-1, 1) * 100.0
    assert float(dice_cross_entropy(sure, target)) == pytest.approx(0, abs=1e-4)
    assert float(dice_cross_entropy(sure.roll(1, 1), target)) > 50


@pytest.mark.parametrize("dims", [2, 3])
def test_training_learns_bright_from_dark(dims):
    network = DeepLabV3Plus.from_spec(make_spec(dims, 2))
    shape = (32,) * dims

    def batches():
        while True:
            coarse = torch.randn(2, 1, *(4,) * dims)
            image = torch.nn.functional.interpolate(coarse, size=shape)
            yield image, (image[:, 0] > 0).long()

    losses = []
    trained = train(
        network,
        batches(),
        TrainingSpec(steps=30, learning_rate=5e-3, ema=0.5, bfloat16=False),
        lambda step, loss: losses.append(loss),
    )
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    image, target = next(batches())
    with torch.inference_mode():
        assert (trained(image).argmax(1) == target).float().mean() > 0.7
