"""A network of every block type, in both dimensions, against the reference. The whole table is made by `table.py`."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("medicai", reason="needs medicai, the reference implementation", exc_type=ImportError)

import keras
import medicai.models
from reference import Case, compare, compare_backbones
from table import BAR, cases, measure

import DeepLabSegLib.models
from DeepLabSegLib.models import ENCODERS

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

BLOCK_TYPES = (
    Case("resnet18", (48, 40), 3),
    Case("resnet18", (20, 24, 28), 1, 3),
    Case("resnet50", (32, 32), 1, 4),
    Case("resnet50_v2", (41, 50), 1),
    Case("resnet50_vd", (41, 50), 1, 4),
    Case("resnext50", (24, 20, 16), 1, 3),
    Case("seresnet18", (24, 20, 16), 1, 4),
    Case("densenet121", (41, 50), 1, 5),
    Case("densenet121", (32, 30, 34), 1, 3),
    Case("efficientnet_b0", (41, 50), 3, 5),
    Case("efficientnet_b0", (16, 21, 24), 1, 4),
    Case("efficientnet_v2_b0", (41, 50), 1, 5),
    Case("efficientnet_v2_b0", (16, 21, 24), 1, 3),
    Case("convnext_tiny", (50, 41), 3, 4),
    Case("convnext_v2_atto", (50, 41), 1, 3),
    Case("convnext_v2_atto", (33, 36, 32), 1, 4),
    Case("resnet18", (24, 20), 1, 3, {"decoder_normalization": "layer", "decoder_activation": "leaky_relu"}),
    Case("resnet18", (24, 20), 1, 3, {"decoder_normalization": "instance", "decoder_aspp_separable": False}),
    Case("resnet18", (16, 12, 16), 1, 3, {"decoder_normalization": "unit", "head_upsample": (1, 2, 1.5)}),
    Case("resnet18", (16, 12, 16), 1, 3, {"decoder_normalization": "group", "projection_filters": 32}),
)


def label(case: Case) -> str:
    return "-".join([case.name, "x".join(map(str, case.shape)), f"P{case.depth}", *map(str, case.options.values())])


@pytest.mark.parametrize("case", BLOCK_TYPES, ids=label)
def test_every_pyramid_level_and_the_logits_equal_the_references(case: Case) -> None:
    differences = compare(case)
    assert max(differences.values()) <= BAR, differences


ROW = {"kernel_size": 3, "expand_ratio": 2, "se_ratio": 0.25}
ROWS_V1 = [
    {**ROW, "repeats": 2, "filters_in": 32, "filters_out": 16, "strides": 1, "id_skip": False},
    {**ROW, "repeats": 1, "filters_in": 16, "filters_out": 24, "strides": 2, "id_skip": False, "kernel_size": 5},
]
ROWS_V2 = [
    {**ROW, "num_repeat": 2, "input_filters": 16, "output_filters": 16, "strides": 1, "conv_type": 1},
    {**ROW, "num_repeat": 1, "input_filters": 16, "output_filters": 24, "strides": 2, "conv_type": 0},
]
ONE_STAGE = {"num_blocks": [1], "num_filters": [64], "num_strides": [1], "block_type": "bottleneck_block"}
BACKBONES: tuple[tuple[str, tuple[int, ...], dict], ...] = (
    ("DenseNetBackbone", (41, 50, 1), {"blocks": [2, 1, 2], "growth_rate": 8, "compression": 0.7, "bn_size": 2}),
    ("DenseNetBackbone", (24, 18, 20, 2), {"blocks": [1, 2], "include_rescaling": True, "dropout_rate": 0.1}),
    ("ConvNeXtBackbone", (41, 50, 3), {"depths": [1, 1], "projection_dims": [8, 12], "include_rescaling": True}),
    ("ConvNeXtBackbone", (24, 18, 20, 1), {"depths": [1, 2], "projection_dims": [8, 12], "drop_path_rate": 0.1}),
    ("ConvNeXtBackbone", (24, 20, 1), {"depths": [1, 1], "projection_dims": [8, 4], "layer_scale_init_value": None}),
    ("ConvNeXtBackboneV2", (24, 20, 1), {"depths": [1, 1], "projection_dims": [8, 12], "include_rescaling": True}),
    ("EfficientNetBackbone", (41, 50, 2), {"width_coefficient": 0.5, "depth_coefficient": 0.5, "activation": "relu"}),
    (
        "EfficientNetBackbone",
        (20, 17, 16, 1),
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "blocks_args": ROWS_V1, "include_rescaling": True},
    ),
    (
        "EfficientNetBackboneV2",
        (41, 50, 1),
        {"width_coefficient": 1.1, "depth_coefficient": 1.2, "blocks_args": ROWS_V2, "activation": "leaky_relu"},
    ),
    (
        "ResNetBackbone",
        (41, 50, 2),
        {"num_blocks": [1, 1], "num_filters": [64, 96], "num_strides": [1, 2], "block_type": "bottleneck_block"},
    ),
    (
        "ResNetBackbone",
        (20, 17, 16, 1),
        {
            "num_blocks": [2, 1],
            "num_filters": [64, 80],
            "num_strides": [1, 1],
            "block_type": "basic_block",
            "conv_filters": [8, 64],
            "conv_kernel_sizes": [5, 3],
            "se_block": True,
            "se_ratio": 4,
            "se_activation": "gelu",
            "use_pre_activation": True,
            "include_rescaling": True,
        },
    ),
    (
        "ResNetBackbone",
        (33, 42, 1),
        {"num_blocks": [1, 2, 1, 1], "block_type": "bottleneck_block_vd", "groups": 4, "width_per_group": 8},
    ),
    (  # as many groups as channels, which is no depthwise layer of Keras
        "ResNetBackbone",
        (20, 25, 1),
        {"groups": 64, "width_per_group": 1, **ONE_STAGE},
    ),
)


@pytest.mark.parametrize(("name", "shape", "arguments"), BACKBONES, ids=lambda value: str(value)[:40])
def test_a_backbone_of_ones_own_arguments_equals_the_references(
    name: str, shape: tuple[int, ...], arguments: dict
) -> None:
    keras.utils.clear_session()
    named = {} if name == "ResNetBackbone" else {"name": "theirs"}  # without one most can't be called again
    theirs = getattr(medicai.models, name)(input_shape=shape, **named, **arguments)
    ours = getattr(DeepLabSegLib.models, name)(input_shape=shape, **arguments)
    differences = compare_backbones(theirs, ours)
    assert len(differences) == len(ours.channels)
    assert max(differences) <= BAR, differences


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_whole_table_stays_below_the_bar(name: str, dims: int) -> None:
    row = measure(name, dims, limit=250_000_000)
    assert row["ours"] == row["theirs"]
    assert max(row.get("differences", {"": 0.0}).values()) <= BAR
    assert {case.depth for case in cases(name, dims)} >= {3}
