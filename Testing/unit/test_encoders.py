"""The encoder families: names, sizes, arguments, and numbers recorded from the reference."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from seeded import FIXTURES
from torch import nn

from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models import (
    ENCODERS,
    ConvNeXtBackbone,
    ConvNeXtBackboneV2,
    DeepLabV3Plus,
    DenseNetBackbone,
    EfficientNetBackbone,
    EfficientNetBackboneV2,
    ResNetBackbone,
    make_encoder,
)
from DeepLabSegLib.models.activations import ACTIVATIONS, DECODER_ACTIVATIONS
from DeepLabSegLib.models.efficientnet import Blocks, EfficientNetSpec
from DeepLabSegLib.models.encoders import FAMILIES
from DeepLabSegLib.models.layers import DECODER_NORMS, DropPath, InputNorm, SamePad

KNOWN = json.loads((FIXTURES / "known.json").read_text())
SMALLEST = (
    "resnet18",
    "resnet50_v2",
    "resnet50_vd",
    "densenet121",
    "efficientnet_b0",
    "convnext_v2_atto",
    "seresnet18",
)


def numbers(module: torch.nn.Module) -> int:
    """Parameters and running statistics."""
    return sum(t.numel() for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked"))


def build(name: str, dims: int) -> DeepLabV3Plus:
    depth = 4 if ENCODERS[name] == "convnext" else 5
    with torch.device("meta"):
        return DeepLabV3Plus(encoder_name=name, input_shape=(64,) * dims + (1,), encoder_depth=depth, num_classes=3)


def test_there_are_59_names_in_five_families() -> None:
    assert list(FAMILIES) == ["resnet", "densenet", "efficientnet", "convnext", "senet"]
    assert [len(rows) for _, rows in FAMILIES.values()] == [12, 4, 17, 14, 12]
    assert set(ENCODERS) == set(KNOWN["counts"])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", SMALLEST)
def test_a_small_variant_of_each_kind_counts_as_the_reference_counts(name: str, dims: int) -> None:
    assert numbers(build(name, dims)) == KNOWN["counts"][name][dims - 2]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(SMALLEST)))
def test_every_variant_counts_as_the_reference_counts(name: str) -> None:
    assert [numbers(build(name, dims)) for dims in (2, 3)] == KNOWN["counts"][name]


@pytest.mark.parametrize("shape", [(37, 50, 3), (33, 47, 38, 1)])
@pytest.mark.parametrize("name", SMALLEST)
def test_levels_have_the_shapes_that_pyramid_outputs_promises(name: str, shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        encoder = make_encoder(name, shape).eval()
        pyramid = encoder(torch.empty(1, shape[-1], *shape[:-1]))
    assert [tuple(level.shape[1:]) for level in pyramid] == [p.shape for p in encoder.pyramid_outputs.values()]
    assert [p.stride for p in encoder.pyramid_outputs.values()] == list(encoder.strides)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("name", SMALLEST)
def test_a_cut_encoder_is_the_beginning_of_the_whole_one(name: str, depth: int) -> None:
    with torch.device("meta"):
        whole, cut = make_encoder(name, (64, 64, 1)).eval(), make_encoder(name, (64, 64, 1), depth).eval()
        x = torch.empty(1, 1, 64, 64)
        levels = [tuple(level.shape) for level in cut(x)]
        assert levels == [tuple(level.shape) for level in whole(x)][:depth]
    assert cut.channels == whole.channels[:depth]
    assert cut.state_dict().keys() <= whole.state_dict().keys()


def test_a_convnext_backbone_goes_into_a_network_as_in_the_reference() -> None:
    encoder = ConvNeXtBackbone(input_shape=(64, 64, 64, 1), depths=[1, 1, 2, 1], projection_dims=[8, 16, 24, 32])
    model = DeepLabV3Plus(
        encoder=encoder, num_classes=1, classifier_activation="sigmoid", encoder_depth=4, head_upsample=8
    ).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 1, 64, 64, 64)).shape == (1, 1, 64, 64, 64)
    assert encoder.strides == (4, 8, 16, 32)


def test_a_network_by_name_has_only_the_convnext_normalisations_that_it_reads() -> None:
    model = build("convnext_v2_atto", 2)
    named = [name for name in model.state_dict() if name.startswith("encoder.norms")]
    assert named == [f"encoder.norms.{n}.{part}" for n in (1, 3) for part in ("weight", "bias")]
    assert "norms.0.weight" in make_encoder("convnext_v2_atto", (64, 64, 1)).state_dict()


@pytest.mark.parametrize(
    ("name", "size"), [("densenet121", (29, 40)), ("densenet121", (32, 29, 32)), ("convnext_v2_atto", (32, 32))]
)
def test_the_smallest_input_works_and_one_less_is_refused(name: str, size: tuple[int, ...]) -> None:
    encoder = make_encoder(name, (*size, 1)).eval()
    with torch.no_grad():
        assert min(encoder(torch.rand(1, 1, *size))[-1].shape[2:]) == 1
    smaller = [n - 1 if n == min(size) else n for n in size]
    with pytest.raises(InvalidInput, match=f"at least {min(size)}"):
        encoder(torch.rand(1, 1, *smaller))


@pytest.mark.parametrize(
    ("backbone", "arguments", "said"),
    [
        (DenseNetBackbone, {"blocks": []}, "blocks"),
        (DenseNetBackbone, {"blocks": 2}, "blocks is 2; give one or more positive integers in a list"),
        (DenseNetBackbone, {"blocks": [2], "growth_rate": 1.5}, "growth_rate is 1.5; it must be a positive integer"),
        (DenseNetBackbone, {"blocks": [2], "compression": 0}, "compression"),
        (DenseNetBackbone, {"blocks": [2], "compression": "0.5"}, r"compression is '0\.5'; it must be in \(0, 1\]"),
        (
            DenseNetBackbone,
            {"blocks": [2, 2], "compression": 1e-3},
            r"compression is 0\.001, which leaves none of 128 channels; give at least 0\.008",
        ),
        (DenseNetBackbone, {"blocks": [2], "dropout_rate": 1.5}, "dropout_rate"),
        (DenseNetBackbone, {"blocks": [2], "encoder_depth": 0}, "encoder_depth"),
        (EfficientNetBackbone, {"width_coefficient": 0, "depth_coefficient": 1}, "width_coefficient"),
        (EfficientNetBackbone, {"width_coefficient": 1, "depth_coefficient": 1, "activation": "wish"}, "activation"),
        (EfficientNetBackbone, {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": "b9"}, "blocks_args"),
        (EfficientNetBackbone, {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [{"k": 1}]}, "'k'"),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [Blocks(1, 4, 1, 1, 32, 16)]},
            "odd kernel_size",
        ),
        (
            EfficientNetBackbone,
            {"width_coefficient": "1", "depth_coefficient": 1},
            "is '1'; it must be a positive number",
        ),
        (EfficientNetBackbone, {"width_coefficient": 1, "depth_coefficient": float("inf")}, "depth_coefficient is inf"),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "bn_momentum": 99},
            "bn_momentum is 99",
        ),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "activation": "glu"},
            "activation is 'glu'",
        ),
        (EfficientNetBackbone, {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": []}, "one or more rows"),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [3]},
            r"\[3\]; give one",
        ),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [{"kernel_size": 3, "strides": 1}]},
            "Blocks lacks repeats, expand_ratio, filters_in, filters_out",
        ),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [Blocks(1, 3, 0, 1, 32, 16)]},
            "strides in blocks_args is 0; it must be a positive integer",
        ),
        (
            EfficientNetBackbone,
            {"width_coefficient": 1, "depth_coefficient": 1, "blocks_args": [Blocks(1, 3, 1, 1, 32, 16, None)]},
            "se_ratio in blocks_args is None; give a number, 0 for no gate",
        ),
        (ConvNeXtBackbone, {"depths": [1, 1], "projection_dims": [8]}, "same length"),
        (ConvNeXtBackbone, {"depths": [0], "projection_dims": [8]}, "positive"),
        (
            ConvNeXtBackbone,
            {"depths": [1], "projection_dims": [8.5]},
            r"projection_dims is \[8\.5\].*positive integers",
        ),
        (ConvNeXtBackboneV2, {"depths": [1], "projection_dims": [8], "drop_path_rate": 2}, "drop_path_rate"),
        (ResNetBackbone, {"num_blocks": [1], "block_type": "block"}, "block_type"),
        (ResNetBackbone, {"num_blocks": 2}, "num_blocks is 2; give one or more positive integers in a list"),
        (ResNetBackbone, {"num_blocks": [0, 1, 1, 1]}, "num_blocks is .*positive integers"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "num_strides": [0, 2, 2, 2]}, "num_strides is .*positive integers"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "conv_kernel_sizes": [0]}, "conv_kernel_sizes is .*positive integers"),
        (
            ResNetBackbone,
            {"num_blocks": [1] * 4, "conv_filters": [8, 64], "conv_kernel_sizes": [7, 4]},
            r"conv_kernel_sizes is \[7, 4\]; after the first they must be odd",
        ),
        (ResNetBackbone, {"num_blocks": [1] * 4, "groups": 0}, "groups is 0; it must be a positive integer"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "se_block": True, "se_ratio": 0}, "se_ratio is 0"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "se_block": True, "se_activation": "glu"}, "se_activation"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "block_type": "basic_block", "conv_filters": [32]}, "conv_filters"),
        (ResNetBackbone, {"num_blocks": [1] * 4, "block_type": "basic_block", "num_strides": [2, 1, 1, 1]}, "strides"),
    ],
)
def test_a_bad_argument_is_refused_by_name(backbone: type, arguments: dict, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        backbone(input_shape=(32, 32, 1), **arguments)


@pytest.mark.parametrize(
    ("backbone", "needed"),
    [
        (ResNetBackbone, {"num_blocks": (1, 1, 1, 1)}),
        (DenseNetBackbone, {"blocks": (1, 1, 1, 1)}),
        (EfficientNetBackbone, {"width_coefficient": 1.0, "depth_coefficient": 1.0}),
        (EfficientNetBackboneV2, {"width_coefficient": 1.0, "depth_coefficient": 1.0}),
        (ConvNeXtBackbone, {"depths": (1, 1), "projection_dims": (4, 8)}),
        (ConvNeXtBackboneV2, {"depths": (1, 1), "projection_dims": (4, 8)}),
    ],
)
@pytest.mark.parametrize("shape", [(32, 32, 1), (32, 32, 32, 1)])
def test_a_backbone_names_what_it_needs_and_what_it_does_not_know(
    backbone: type, needed: dict, shape: tuple[int, ...]
) -> None:
    backbone(input_shape=shape, **needed)
    with pytest.raises(InvalidInput, match=f"Spec lacks {', '.join(needed)}; give it"):
        backbone(input_shape=shape)
    with pytest.raises(InvalidInput, match=f"Spec has no foo; its fields are {next(iter(needed))}"):
        backbone(input_shape=shape, foo=1, **needed)


def test_efficientnet_rows_may_come_as_the_references_dictionaries() -> None:
    row = {"kernel_size": 3, "expand_ratio": 4, "se_ratio": 0.25, "strides": 2}
    first = {"repeats": 1, "filters_in": 32, "filters_out": 24}
    second = {"num_repeat": 1, "input_filters": 16, "output_filters": 24, "conv_type": 0}
    shared = {"input_shape": (32, 32, 1), "width_coefficient": 1.0, "depth_coefficient": 1.0}
    v1 = EfficientNetBackbone(blocks_args=[{**row, **first}], **shared)
    v2 = EfficientNetBackboneV2(blocks_args=[{**row, **second}], **shared)
    assert v1.strides == v2.strides == (2, 4)
    assert v1.channels == (32, 1280)
    assert v2.channels == (16, 1280)


@pytest.mark.parametrize(("given", "known"), [("ReLU", "relu"), (None, "linear")])
def test_a_gates_activation_may_be_written_as_the_references(given: str | None, known: str) -> None:
    encoder = ResNetBackbone((32, 32, 1), num_blocks=(1,) * 4, se_block=True, se_activation=given)
    assert encoder.stages[0][0].body.se.activation.name == known


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_rescaling_maps_pixel_values_into_the_networks_range(dims: int, channels: int) -> None:
    shape = (*(64,) * dims, channels)
    x = torch.rand(1, channels, *(64,) * dims)
    shared = {"depths": [1, 1], "projection_dims": [4, 8], "encoder_depth": 2}
    plain = ConvNeXtBackbone(shape, **shared)
    scaled = ConvNeXtBackbone(shape, include_rescaling=True, **shared)
    scaled.load_state_dict(plain.state_dict())
    mean = torch.tensor([0.485, 0.456, 0.406] if channels == 3 else [0.0]).view(-1, *[1] * dims)
    spread = torch.tensor([0.229, 0.224, 0.225] if channels == 3 else [1.0]).view(-1, *[1] * dims)
    with torch.no_grad():
        torch.testing.assert_close(scaled(255 * (x * spread + mean))[1], plain(x)[1], rtol=1e-4, atol=1e-4)


def test_a_channel_that_was_the_same_everywhere_is_no_division_by_zero() -> None:
    norm = InputNorm([3.0], [0.0], learned=True)
    assert torch.equal(norm(torch.full((1, 1, 2, 2), 3.0)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_give_keras_values(name: str) -> None:
    x = torch.tensor(KNOWN["numbers"]).view(1, -1, 1, 1).expand(2, -1, 1, 3)
    for kind, table in (("function", ACTIVATIONS), ("layer", DECODER_ACTIVATIONS)):
        if name in KNOWN["activations"][kind]:
            expected = torch.tensor(KNOWN["activations"][kind][name]).view(1, -1, 1, 1).expand(2, -1, 1, 3)
            torch.testing.assert_close(table[name](x), expected, rtol=2e-6, atol=2e-6)


def test_decoder_and_classifier_have_the_slopes_of_their_keras_layers() -> None:
    x = torch.tensor([[-1.0]])
    assert ACTIVATIONS["leaky_relu"](x).item() == pytest.approx(-0.2)
    assert DECODER_ACTIVATIONS["leaky_relu"](x).item() == pytest.approx(-0.3)
    with pytest.raises(InvalidInput, match="decoder_activation"):
        DeepLabV3Plus(encoder_name="resnet18", input_shape=(32, 32, 1), decoder_activation="glu")


def test_dropped_paths_are_whole_samples_in_training_and_none_otherwise() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(256, 2, 3, 3)
    kept = drop(x).flatten(1)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (kept == kept[:, :1]).all()
    assert float(kept.mean()) == pytest.approx(1, abs=0.1), "what is kept makes up for what is dropped"
    assert torch.equal(drop.eval()(x), x)


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("efficientnet_b0", 0, 0.2 * 15 / 16),
        ("efficientnet_b7", 0, 0.5 * 54 / 55),
        ("efficientnet_v2_b3", 0, 0.2 * 31 / 21),  # of the blocks before the depth is scaled, as in the reference
    ],
)
def test_the_share_of_dropped_paths_grows_from_block_to_block(name: str, first: float, last: float) -> None:
    with torch.device("meta"):
        rates = [m.rate for m in make_encoder(name, (64, 64, 1)).modules() if isinstance(m, DropPath)]
    assert (rates[0], rates[-1]) == pytest.approx((first, last))
    steps = [b - a for a, b in itertools.pairwise(rates)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_a_convnexts_blocks_start_and_drop_as_the_references() -> None:
    encoder = ConvNeXtBackbone((32, 32, 1), depths=[2, 1], projection_dims=[4, 8], drop_path_rate=0.4, encoder_depth=5)
    blocks = [block for stage in encoder.stages for block in stage]
    assert [block.drop.rate for block in blocks] == pytest.approx([0, 0.2, 0.4])
    assert all((block.scale == 1e-6).all() for block in blocks)
    assert make_encoder("convnext_v2_atto", (32, 32, 1), 1).stages[0][0].scale is None


def test_the_rates_of_dropped_values_are_those_that_are_given() -> None:
    encoder = DenseNetBackbone((32, 32, 1), blocks=[1, 1], dropout_rate=0.2)
    assert {m.p for m in encoder.modules() if isinstance(m, nn.Dropout)} == {0.2}
    model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(32, 32, 1), encoder_depth=3, decoder_aspp_dropout=0.3)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize(("version", "width"), [(1, 16), (2, 8)])
def test_only_the_first_efficientnet_is_never_more_than_a_tenth_narrower_than_asked(version: int, width: int) -> None:
    assert EfficientNetSpec(0.35, 1.0, version=version).scaled(32) == width


def test_a_response_over_a_large_map_stays_finite_in_half_precision() -> None:
    grn = make_encoder("convnext_v2_atto", (32, 32, 1), 1).stages[0][0].grn.half()
    nn.init.ones_(grn.weight)
    x = torch.full((1, 64, 64, grn.weight.numel()), 100, dtype=torch.float16)
    torch.testing.assert_close(grn(x), 2 * x)  # equal channels have the mean's energy


@pytest.mark.parametrize(("value", "wanted"), [(0.0, 0.0), (1e-4, 0.125), (100.0, 0.125)])
def test_vectors_of_any_length_are_scaled_to_one_in_half_precision(value: float, wanted: float) -> None:
    x = torch.full((1, 64, 3, 3), value, dtype=torch.float16)
    torch.testing.assert_close(DECODER_NORMS["unit"](2, 64)(x), torch.full_like(x, wanted))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {("encoder", 0.1), ("decoder", 0.01)}),
        ("densenet121", {("encoder", 0.01), ("decoder", 0.01)}),
        ("efficientnet_b0", {("encoder", 0.01), ("decoder", 0.01)}),
        ("efficientnet_v2_b0", {("stages", 0.1), ("encoder", 0.01), ("decoder", 0.01)}),
    ],
)
@pytest.mark.parametrize("dims", [2, 3])
def test_running_statistics_follow_as_fast_as_the_references(name: str, expected: set, dims: int) -> None:
    found = set()
    for place, norm in build(name, dims).named_modules():
        if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            part = "stages" if "v2" in name and ".stages." in place else place.partition(".")[0]
            found.add((part if part in ("encoder", "stages") else "decoder", round(norm.momentum, 9)))
    assert found == expected


@pytest.mark.parametrize("size", [7, 8, 9, 10])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (7, 2), (5, 2), (3, 3)])
def test_same_padding_rounds_sizes_up_and_puts_the_odd_rest_last(size: int, kernel: int, stride: int) -> None:
    x = torch.ones(1, 1, size, size)
    padded = SamePad(kernel, stride)(x)
    assert (padded.shape[-1] - kernel) // stride + 1 == -(-size // stride)
    before = int((padded[0, 0, :, padded.shape[-1] // 2] == 0).nonzero().flatten().lt(padded.shape[-1] // 2).sum())
    assert 0 <= padded.shape[-1] - size - 2 * before <= 1
