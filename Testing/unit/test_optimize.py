"""The fast form gives the plain form's numbers.

Measured against float64 (relative L2), it is within 1e-5 in float32 and 3e-2 in bf16; where a random network magnifies
rounding, within four times what the plain form is off.
"""

import copy
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import DeepLabSegLib.optimize.form as form
import DeepLabSegLib.optimize.winograd as winograd
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.deeplab import DeepLabV3Plus
from DeepLabSegLib.optimize import FastForms, fast_form
from DeepLabSegLib.optimize.blocks import conv_on_pairs, conv_on_rows, on_pairs, on_rows, to_pairs, to_rows
from DeepLabSegLib.optimize.calls import Place
from DeepLabSegLib.optimize.enlarged import enlarge, enlarging
from DeepLabSegLib.optimize.gpu import for_gpu
from DeepLabSegLib.optimize.lower import packed, works
from DeepLabSegLib.optimize.rewrite import Conv
from DeepLabSegLib.optimize.winograd import AT_ONCE, at_points, convolve_by_points, results_at_once, tiles

CPU = torch.device("cpu")
FAMILIES = [
    "resnet18", "seresnet18", "resnet50_v2", "seresnet50_vd", "resnext50", "densenet121", "efficientnet_b0",
    "efficientnet_v2_b0", "convnext_tiny", "convnext_v2_atto",
]  # fmt: skip


def make(dims: int, encoder: str | nn.Module = "resnet18", **more) -> DeepLabV3Plus:
    """A small network with statistics of its own."""
    named = {"encoder_name": encoder} if isinstance(encoder, str) else {"encoder": encoder}
    depth = 4 if "convnext" in str(encoder) else more.pop("encoder_depth", 5)
    options = {"num_classes": 3, "decoder_channels": 32, "projection_filters": 32, "encoder_depth": depth, **more}
    network = DeepLabV3Plus(**named, input_shape=(*(None,) * dims, 2), **options).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
    return network


def check(network: DeepLabV3Plus, x: torch.Tensor, precision: str = "fp32") -> None:
    """Compare the fast form's logits of `x`, and the plain form's, with those in float64."""
    half = precision == "bf16"
    with torch.inference_mode():
        exact = copy.deepcopy(network).double().coarse_logits(x.double())
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            plain = network.coarse_logits(x)
    found = fast_form(network, x.shape, CPU, precision)(x)
    assert found.shape == exact.shape
    off, plain_off = (float((result - exact).norm() / exact.norm()) for result in (found, plain))
    assert off < max(3e-2 if half else 1e-5, 4 * plain_off)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", FAMILIES)
def test_every_family_gives_the_same_numbers_at_odd_sizes(encoder, dims):
    size = (45, 66) if dims == 2 else (33, 34, 47)
    check(make(dims, encoder), torch.randn(1, 2, *size))


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", ["resnet50", "seresnext50", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_whole_networks_give_the_same_numbers_at_the_sizes_they_are_used_at(encoder, dims):
    size = (224, 224) if dims == 2 else (96, 96, 96)
    network = make(dims, encoder, decoder_channels=256, projection_filters=48)
    check(network, torch.randn(1, 2, *size))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", ["resnet50_v2", "densenet121", "efficientnet_b0", "convnext_v2_atto"])
def test_without_onednns_private_operators_the_numbers_are_the_same(encoder, dims, monkeypatch):
    monkeypatch.setattr(form, "works", lambda *_: False)
    x = torch.randn(2, 2, *(33, 50, 40)[:dims])
    assert "torch convolutions" in fast_form(make(dims, encoder), x.shape, CPU, "fp32").how
    check(make(dims, encoder), x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", ["resnet18", "seresnet18", "densenet121", "efficientnet_b0", "convnext_tiny"])
def test_bf16_is_near(encoder, dims):
    check(make(dims, encoder), torch.randn(1, 2, *(40, 50, 33)[:dims]), "bf16")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kept_as", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_folded_in_full(kept_as, dims):
    network, x = make(dims, "resnet18").to(kept_as), torch.randn(1, 2, *(40, 50, 33)[:dims])
    with torch.inference_mode():
        exact = copy.deepcopy(network).double().coarse_logits(x.double())
    assert (fast_form(network, x.shape, CPU, "fp32")(x) - exact).norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("norm", "activation"),
    [("layer", "relu"), ("unit", "leaky_relu"), ("group", "gelu"), ("instance", "hard_swish"), ("sync_batch", "mish")],
)
def test_every_normalisation_and_all_kinds_of_activation(norm, activation, dims):
    network = make(dims, encoder_depth=3, decoder_normalization=norm, decoder_activation=activation)
    x = torch.randn(2, 2, *(33, 40, 25)[:dims])
    for precision in ("fp32", "bf16"):
        assert fast_form(network, x.shape, CPU, precision).how.startswith("folded")
    check(network, x)


@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
@pytest.mark.parametrize("size", [(32, 32), (16, 48, 48)])
def test_maps_of_one_voxel_along_an_axis_give_the_same_numbers(size, norm):
    network = make(len(size), "resnet50_vd", decoder_normalization=norm)
    assert fast_form(network, (1, 2, *size), CPU, "fp32").how.startswith("folded")
    check(network, torch.randn(1, 2, *size))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("size", [16, 48, 97])
def test_dilated_taps_that_meet_padding_only_are_left_out(size, separable, dims):
    network = make(dims, decoder_dilation_rates=(1, 2, 4), decoder_aspp_separable=separable)
    x = torch.randn(1, 2, *((size,) * dims))[..., : max(8, size // 3)]  # the last axis is shorter than the others
    check(network, x)


@pytest.mark.parametrize(("taps", "padding"), [(7, 3), (3, 1), (4, 1), (2, 0), (5, 2), (7, 0)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_stem_on_pairs_or_rows_of_voxels_gives_the_same_numbers(dims, channels, taps, padding):
    weight = torch.randn(6, channels, *(taps,) * dims, dtype=torch.float64)
    for size in ((14, 15, 16), (9, 11, 8)):
        x = torch.randn(2, channels, *size[:dims], dtype=torch.float64)
        pairs, rows = (Conv(weight, None, [2] * dims, [padding] * dims, [1] * dims, 1) for _ in range(2))
        wanted = _convolved(x, pairs)
        given = to_pairs(x, taps, padding)
        conv_on_pairs(pairs)
        torch.testing.assert_close(_convolved(given, pairs), wanted)
        if dims == 3:
            given = to_rows(x, rows.kernel, rows.padding)
            assert given.is_contiguous(memory_format=torch.channels_last)
            conv_on_rows(rows, wanted.shape[-1])
            torch.testing.assert_close(_convolved(given, rows).view(wanted.shape), wanted)


def _convolved(x: torch.Tensor, conv: Conv) -> torch.Tensor:
    function = F.conv2d if x.ndim == 4 else F.conv3d
    return function(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def test_pairs_and_rows_are_for_half_precision_few_channels_and_steps_of_two_only():
    conv = Conv(torch.zeros(8, 1, 7, 7, 7), None, [2, 2, 2], [3, 3, 3], [1, 1, 1], 1)
    more = replace(conv, weight=torch.zeros(8, 8, 7, 7, 7))
    others = [replace(conv, stride=[1, 1, 1]), replace(conv, stride=[1, 2, 2]), replace(conv, stride=[4, 4, 4])]
    others += [replace(conv, dilation=[2, 2, 2]), replace(conv, groups=8)]
    gpu = torch.device("cuda")
    assert on_rows(conv, gpu, torch.float16)
    assert on_rows(conv, gpu, torch.bfloat16)
    assert on_pairs(conv, CPU, torch.bfloat16)
    for device in (CPU, gpu):
        for chosen in (on_pairs, on_rows):
            assert not chosen(conv, device, torch.float32)
            assert not any(chosen(other, device, torch.bfloat16) for other in (more, *others))


@pytest.mark.parametrize("other", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "swish", "gelu"])
@pytest.mark.parametrize(
    ("channels", "taps", "stride", "dilation", "groups"),
    [
        (16, 3, 1, 1, 1),
        (16, 1, 1, 1, 1),
        (16, 3, 1, 1, 4),
        (16, 3, 2, 1, 16),
        (16, 3, 1, 2, 16),
        (16, 7, 1, 1, 16),
        (16, 5, 2, 1, 16),
        (16, 4, 2, 1, 16),
        (16, 4, 1, 1, 16),
        (6, 1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("size", [(9, 5, 7), (4, 8, 6)])
@pytest.mark.parametrize("dims", [2, 3])
def test_what_a_gpu_calls_gives_the_same_numbers(
    dims, size, channels, taps, stride, dilation, groups, activation, other
):
    """On the CPU, but for cuDNN's own operators."""
    place = ([stride] * dims, [dilation * ((taps - 1) // 2)] * dims, [dilation] * dims, groups)
    weight = (torch.randn(channels, channels // groups, *(taps,) * dims) / taps**dims).bfloat16()
    bias = torch.randn(channels).bfloat16()
    x = torch.randn(2, channels, *size[:dims]).bfloat16()
    plain = _convolved(x.float(), Conv(weight.float(), bias.float(), *place))
    added = torch.randn_like(plain).bfloat16() if other else None
    applied = {None: lambda y: y, "relu": torch.relu, "swish": F.silu, "gelu": F.gelu}[activation]
    wanted = applied(plain if added is None else plain + added.float())
    conv = Conv(weight, bias, *place, activation=activation)
    weights, call = for_gpu(conv, fused=False)
    last = torch.channels_last if dims == 2 else torch.channels_last_3d
    for given in (x, x.contiguous(memory_format=last)):
        found = call(given, weights, bias, Place(*place[:3], conv.groups), activation, added)
        torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.03)


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize(("taps", "padding", "dilation"), [(3, 1, 1), (5, 2, 1), (3, 2, 2), (3, 0, 1), (1, 0, 1)])
@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_convolved_before_it_is_enlarged_gives_the_same_numbers(dims, taps, padding, dilation, layout):
    low, large = (3, 2, 4)[:dims], (13, 9, 16)[:dims]
    convolve, mode = ((F.conv2d, "bilinear"), (F.conv3d, "trilinear"))[dims - 2]
    x, weight = torch.randn(2, 6, *low, dtype=torch.float64), torch.randn(6, 1, *(taps,) * dims, dtype=torch.float64)
    mixing = torch.randn(5, 6, dtype=torch.float64)
    wide = convolve(F.interpolate(x, large, mode=mode), weight, padding=padding, dilation=dilation, groups=6)
    small = torch.einsum("nc...,ck,oc->nko...", x, weight.flatten(1), mixing).flatten(1, 2)
    if layout == "channels last":
        small = small.movedim(1, -1).contiguous().movedim(-1, 1)
    matrices = [enlarging(*sizes, taps, padding, dilation).double() for sizes in zip(low, large, strict=True)]
    torch.testing.assert_close(
        enlarge(small, matrices), torch.einsum("nc...,oc->no...", wide, mixing), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_decoder_convolves_before_it_enlarges_where_that_is_less_work(dims, activation):
    x = torch.randn(1, 2, *(64,) * dims)
    for depth, wanted in ((5, activation == "relu"), (3, False)):
        network = make(dims, decoder_channels=64, decoder_activation=activation, encoder_depth=depth)
        targets = [node.target for node in fast_form(network, x.shape, CPU, "fp32").run.graph.nodes]
        assert (enlarge in targets) == wanted
        check(network, x)


def test_joined_maps_keep_their_layout():
    network = make(3, "seresnext50", encoder_depth=3)
    run = fast_form(network, (1, 2, 32, 32, 32), CPU, "fp32").run
    called = [node.target for node in run.graph.nodes if node.op == "call_function"]
    assert called.count(torch.ops.aten.cat.default) == called.count(torch.ops.aten.clone.default) + 1 == 2
    check(network, torch.randn(1, 2, 32, 32, 32))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("results", AT_ONCE)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_three_taps_by_points_give_the_same_numbers(padding, results, dims):
    convolve = F.conv2d if dims == 2 else F.conv3d
    place = ([1] * dims, [padding] * dims, [1] * dims)
    conv = Conv(torch.randn(16, 8, *(3,) * dims), torch.randn(16), *place, 1)
    for size in ((11, 6, 5), (12, 9, 8), (3, 4, 4)):
        x = torch.randn(2, 8, *size[:dims])
        shape = [2, 8, tiles(size[0], padding, results), *size[1:dims]]
        weights = [packed(part, shape) for part in at_points(conv, results)]
        found = convolve_by_points(x, weights, conv.bias, *place)
        exact = convolve(x.double(), conv.weight.double(), conv.bias.double(), padding=padding)
        assert found.shape == exact.shape
        assert (found - exact).norm() < 5e-6 * exact.norm()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("encoder", ["resnet18", "resnet50_v2", "seresnet18", "densenet121"])
def test_networks_whose_convolutions_go_by_points_give_the_same_numbers(encoder, dims, monkeypatch):
    for effort in ("TRANSFORM", "WEIGHT", "START"):  # without them all that can go by points does
        monkeypatch.setattr(winograd, effort, 0)
    check(make(dims, encoder), torch.randn(1, 2, *(45, 50, 66)[:dims]))


def test_points_are_for_large_maps_of_many_channels_and_three_taps_side_by_side():
    wide, narrow, strided, image = (
        Conv(torch.zeros(channels, channels, *(3,) * dims), None, [stride] * dims, [1] * dims, [1] * dims, 1)
        for channels, dims, stride in ((64, 3, 1), (16, 3, 1), (64, 3, 2), (64, 2, 1))
    )
    assert results_at_once(wide, (72, 72, 72)) > 1
    for other in (
        replace(wide, groups=2),
        replace(wide, dilation=[2, 1, 1]),
        replace(wide, stride=[2, 1, 1]),
        replace(wide, weight=torch.zeros(64, 64, 5, 3, 3)),
    ):
        assert results_at_once(other, (72, 72, 72)) == 1
    for conv, sizes in ((narrow, (72, 72, 72)), (strided, (72, 72, 72)), (wide, (4, 4, 4)), (image, (56, 56))):
        assert results_at_once(conv, sizes) == 1


class OwnEncoder(nn.Module):
    """What a user may bring: three convolutions, and on demand a look at the values."""

    channels, strides = (4, 8, 8), (2, 4, 8)

    def __init__(self, dims: int, looks: bool) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.convs = nn.ModuleList(conv(a, b, 3, 2, 1) for a, b in ((2, 4), (4, 8), (8, 8)))
        self.looks = looks

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        pyramid = []
        for conv in self.convs:
            x = conv(x)
            if self.looks and x.mean() > 0:
                x = -x
            x = x + torch.relu(x)
            pyramid.append(x)
        return pyramid


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("looks", "how"), [(False, "folded"), (True, "as written")])
def test_a_users_own_encoder_is_made_fast_where_its_steps_dont_hang_on_values(looks, how, dims):
    network = make(dims, OwnEncoder(dims, looks), encoder_depth=3)
    x = torch.randn(1, 2, *(17, 20, 15)[:dims])
    assert fast_form(network, x.shape, CPU, "fp32").how.startswith(how)
    check(network, x)


class Changing(OwnEncoder):
    """Each level is changed by `change(level, places)`, `places` being a buffer of channels' numbers."""

    def __init__(self, dims: int, change) -> None:
        super().__init__(dims, looks=False)
        self.change = change
        self.register_buffer("places", torch.arange(8).flip(0), persistent=False)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.change(level, self.places[-level.shape[1] :]) for level in super().forward(x)]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "change",
    [
        lambda x, places: x.index_select(1, places),
        lambda x, places: x[:, places] * 2,
        lambda x, places: x.masked_fill((places > 1).view(-1, *[1] * (x.ndim - 2)), 0.5),
        lambda x, places: x - x.mean(dim=tuple(range(2, x.ndim)), keepdim=True, dtype=torch.float32).to(x.dtype),
        lambda x, places: x - x.mean(dim=[], keepdim=True),
        lambda x, places: x * x.mean(dim=1, keepdim=True),
        lambda x, places: x.to(torch.promote_types(x.dtype, torch.float32)).tanh().to(x.dtype),
    ],
    ids=["places", "index", "mask", "mean in float32", "mean over all", "mean over channels", "a wider type"],
)
def test_places_masks_and_means_of_a_users_own_encoder_are_kept(change, precision, dims):
    network = make(dims, Changing(dims, change), encoder_depth=3)
    x = torch.randn(1, 2, *(33, 40, 25)[:dims])
    assert fast_form(network, x.shape, CPU, precision).how.startswith("folded")
    check(network, x, precision)


def _halved_in_place(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    x[:, 0] += 1  # a level that may have been given away before
    half = x.view(x.shape)
    half *= 0.5
    return F.relu_(x - 0.1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("change", [lambda x, places: F.relu(x, inplace=True), _halved_in_place])
def test_a_users_own_encoder_may_write_in_place_and_is_made_fast(change, dims):
    network = make(dims, Changing(dims, change), encoder_depth=3)
    x = torch.randn(1, 2, *(33, 40, 25)[:dims])
    assert fast_form(network, x.shape, CPU, "fp32").how.startswith("folded")
    check(network, x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x, places: x * places.tolist()[0], "tolist reads values"),
        (lambda x, places: x * float(places.numpy()[0]), "numpy reads values"),
        (lambda x, places: x * np.asarray(places).max().item(), "__array__ reads values"),
        (lambda x, places: x if torch.equal(x, x.abs()) else -x, "aten.equal.default reads values"),
        (lambda x, places: x * (1 + len(torch.nonzero(x > 0)) / x.numel()), "aten.nonzero.default reads values"),
        (lambda x, places: x * (1 + len(x[x > 0]) / x.numel()), "aten.index.Tensor reads values"),
        (lambda x, places: x * torch.tensor(0.5), "neither its parameter nor its buffer"),
        (lambda x, places: x * places.add_(1)[0].sign(), "writes values"),
    ],
)
def test_a_users_own_encoder_that_hangs_on_values_runs_as_written(change, reason, dims):
    network = make(dims, Changing(dims, change), encoder_depth=3)
    x = torch.randn(1, 2, *(33, 40, 25)[:dims])
    assert reason in fast_form(network, x.shape, CPU, "fp32").how
    check(network, x)


def test_what_torch_lacks_in_the_fast_layout_runs_as_written():
    def blocks(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), 2), 2)

    for dims, how in ((2, "folded"), (3, "as written (")):
        network = make(dims, Changing(dims, blocks), encoder_depth=3)
        x = torch.randn(1, 2, *(33, 40, 25)[:dims])
        assert fast_form(network, x.shape, CPU, "fp32").how.startswith(how)
        check(network, x)


def test_a_try_of_a_users_own_encoder_for_which_memory_is_missing_is_no_reason_to_run_it_as_written(monkeypatch):
    def full(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(form, "_folded", lambda *_: full)
    with pytest.raises(RuntimeError, match="can't allocate"):
        fast_form(make(2, OwnEncoder(2, looks=False), encoder_depth=3), (1, 2, 40, 40), CPU, "fp32")


class Attention(nn.Module):
    """Channels weighted as in ECA-Net, then voxels that see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(1, 1, 3, padding=1)
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.line(x.flatten(2).mean(2)[:, None])[:, 0])
        x = x * gate.view(*x.shape[:2], *[1] * (x.ndim - 2))
        if x.shape[1] < 8:
            return x
        voxels = x.flatten(2).transpose(1, 2)
        return x + self.heads(voxels, voxels, voxels, need_weights=False)[0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_over_channels_and_voxels_of_a_users_own_encoder_is_kept(precision, dims):
    network = make(dims, Changing(dims, Attention().eval()), encoder_depth=3)
    x = torch.randn(1, 2, *(33, 40, 25)[:dims])
    assert fast_form(network, x.shape, CPU, precision).how.startswith("folded")
    check(network, x, precision)


class Steps(nn.Module):
    """Layers of 8 channels, and `step(layers, x)`."""

    def __init__(self, dims: int, step) -> None:
        super().__init__()
        conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        self.dims, self.step = dims, step
        self.conv, self.bare, self.dilated = conv(8, 8, 3, padding=1), conv(8, 8, 3), conv(8, 8, 3, dilation=2)
        self.line = conv(8, 8, (*[1] * (dims - 1), 3))
        self.grouped, self.biased = conv(8, 8, 1, groups=2), conv(8, 8, 1, groups=8)
        self.single, self.strided, self.padded = (
            conv(8, 8, 1, stride, padding, groups=8, bias=False) for stride, padding in ((1, 0), (2, 0), (1, 1))
        )
        self.norm, self.again = norm(8), norm(8)
        for module in (self.norm, self.again):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return x if x.shape[1] < 8 else self.step(self, x)

    def pad(self, x: torch.Tensor, low: int, high: int, value: float = 0) -> torch.Tensor:
        return F.pad(x, (low, high) * self.dims, value=value)

    def gated(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x.mean(dim=tuple(range(2, x.ndim)), keepdim=True))


def _twice(y: torch.Tensor, function) -> torch.Tensor:
    return function(y) + y


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    "step",
    [
        lambda s, x: s.bare(s.pad(x, 1, 1, -1.0)),
        lambda s, x: s.dilated(s.pad(x, 1, 3)),
        lambda s, x: s.conv(s.pad(x, 1, 1)),
        lambda s, x: s.bare(s.pad(x, 2, 0)),
        lambda s, x: s.bare(s.pad(x, -1, 3)),
        lambda s, x: s.line(F.pad(x, (1, 1))),
        lambda s, x: s.conv(s.biased(x)),
        lambda s, x: s.grouped(s.single(x)),
        lambda s, x: s.conv(s.strided(x)),
        lambda s, x: s.bare(s.padded(x)),
        lambda s, x: F.batch_norm(s.conv(x), None, None, training=True),
        lambda s, x: s.again(s.norm(s.conv(x))),
        lambda s, x: _twice(s.gated(x), s.norm),
        lambda s, x: s.norm(x * torch.sigmoid(x)),
        lambda s, x: _twice(s.conv(x), s.norm),
        lambda s, x: torch.add(s.conv(x), x, alpha=0.3),
        lambda s, x: _twice(s.conv(x), lambda y: y),
        lambda s, x: x.mean(dim=1, keepdim=True) + s.conv(x),
        lambda s, x: F.gelu(s.conv(x), approximate="tanh"),
        lambda s, x: F.silu(x + s.conv(x)),
        lambda s, x: _twice(s.conv(x), torch.relu),
        lambda s, x: _twice(s.conv(x), lambda y: torch.relu(s.conv(y) + y.view(y.shape))),
        lambda s, x: _twice(s.conv(x), lambda y: torch.relu(s.conv(y) + y.chunk(1)[0])),
        lambda s, x: _twice(x.flip(1), lambda y: torch.relu(y.view(y.shape))),
        lambda s, x: _twice(x.flip(1), lambda y: torch.cat([torch.relu(part) for part in y.chunk(2, 1)], 1)),
    ],
)
def test_what_only_looks_like_a_rules_case_gives_the_same_numbers(step, dims):
    network = make(dims, Changing(dims, Steps(dims, step).eval()), encoder_depth=3)
    x = torch.randn(1, 2, *(33, 40, 25)[:dims])
    assert fast_form(network, x.shape, CPU, "fp32").how.startswith("folded")
    check(network, x)


class Joining(nn.Module):
    """A separable convolution of what `join` makes of an enlarged map and another, both of 32 channels."""

    def __init__(
        self, dims: int, join, width: int, after, corners: bool, beyond: float = 0, residual: bool = False, **changed
    ) -> None:
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        step = 16 if dims == 2 else 8
        self.low, self.beside = conv(8, 32, 3, step, 1), conv(8, 32, 1)
        usual = {"padding": 1, "groups": width, "bias": False}
        self.depthwise = conv(width, width, 3, **usual | changed.get("depthwise", {}))
        self.pointwise = conv(width, 8, 1, **changed.get("pointwise", {}))
        self.join, self.after, self.residual = join, after, residual
        self.factor = step + beyond if beyond else None
        self.how = {"mode": "bilinear" if dims == 2 else "trilinear", "align_corners": corners}

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        if x.shape[1] < 8:
            return x
        wide = F.interpolate(self.low(x), None if self.factor else x.shape[2:], self.factor, **self.how)
        joined = self.join(wide, self.beside(x))
        y = self.pointwise(self.depthwise(joined))
        return self.after(y + x if self.residual else y, joined, wide)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(
    ("join", "width", "after", "corners", "wanted"),
    [
        (lambda wide, beside: torch.cat([wide, beside], 1), 64, lambda y, *_: y, False, True),
        (lambda wide, beside: torch.cat([beside, wide], 1 - wide.ndim), 64, lambda y, *_: F.relu(y), False, True),
        (lambda wide, beside: torch.cat([wide, beside], 2), 32, lambda y, *_: y, False, False),
        (lambda wide, beside: torch.cat([wide, beside]), 32, lambda y, *_: y[:1], False, False),
        (lambda wide, beside: torch.cat([wide, beside], 1), 64, lambda y, *_: F.silu(y), False, False),
        (lambda wide, beside: torch.cat([wide, beside], 1), 64, lambda y, joined, _: y + joined[:, :8], False, False),
        (lambda wide, beside: torch.cat([wide, beside], 1), 64, lambda y, _, wide: y + wide[:, :8], False, False),
        (lambda wide, beside: torch.cat([wide, beside], 1), 64, lambda y, *_: y, True, False),
    ],
    ids=["first", "last and ReLU", "along an axis", "images", "SiLU", "joined again", "enlarged again", "corners"],
)
def test_only_enlarged_channels_that_nobody_else_reads_are_convolved_before(join, width, after, corners, wanted, dims):
    network = make(dims, Changing(dims, Joining(dims, join, width, after, corners).eval()), encoder_depth=3)
    x = torch.randn(1, 2, *(256, 256) if dims == 2 else (64, 64, 64))
    targets = [node.target for node in fast_form(network, x.shape, CPU, "fp32").run.graph.nodes]
    assert (enlarge in targets) == wanted
    check(network, x)


@pytest.mark.parametrize(
    "changed",
    [
        {"depthwise": {"bias": True}},
        {"depthwise": {"stride": 2}},
        {"depthwise": {"groups": 32}},
        {"pointwise": {"padding": 1}},
        {"pointwise": {"stride": 2}},
        {"pointwise": {"groups": 2}},
        {"beyond": 0.2},
        {"residual": True},
    ],
    ids=str,
)
def test_only_plain_separable_convolutions_of_maps_enlarged_to_a_size_are_done_before(changed):
    def join(wide: torch.Tensor, beside: torch.Tensor) -> torch.Tensor:
        return torch.cat([wide, beside], 1)

    def sized(y: torch.Tensor, joined: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return F.interpolate(y, joined.shape[2:])

    network = make(2, Changing(2, Joining(2, join, 64, sized, False, **changed).eval()), encoder_depth=3)
    x = torch.randn(1, 2, 128, 128)
    run = fast_form(network, x.shape, CPU, "fp32").run
    assert enlarge not in [node.target for node in run.graph.nodes]
    check(network, x)


@pytest.mark.parametrize("dims", [2, 3])
def test_weights_that_are_normalised_at_each_call_run_as_written(dims):
    encoder = OwnEncoder(dims, looks=False)
    for conv in encoder.convs:
        nn.utils.parametrizations.weight_norm(conv)
    network, x = make(dims, encoder, encoder_depth=3), torch.randn(1, 2, *(17, 20, 15)[:dims])
    for precision in ("fp32", "bf16"):
        assert "_weight_norm_interface" in fast_form(network, x.shape, CPU, precision).how
        check(network, x, precision)


def test_a_sum_whose_argument_is_read_again_is_not_written_over():
    class Branching(OwnEncoder):
        def forward(self, x):
            pyramid = []
            for conv in self.convs:
                x = conv(x)
                again = x + conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, : conv.in_channels]) \
                    if conv.in_channels <= x.shape[1] else x  # fmt: skip
                pyramid.append(again + torch.relu(x) * x)
                x = again
            return pyramid

    network = make(2, Branching(2, False), encoder_depth=3)
    check(network, torch.randn(1, 2, 24, 32))


def test_fewer_images_than_the_form_was_made_for_may_come():
    network, x = make(2), torch.randn(2, 2, 40, 40)
    made = fast_form(network, (5, 2, 40, 40), CPU, "fp32")
    with torch.inference_mode():
        torch.testing.assert_close(made(x), network.coarse_logits(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 40, 40), (1, 2, 1, 40), (2, 40, 40), (3, 2, 40, 40), (1, 2, 40, 40, 40), ()])
@pytest.mark.parametrize("looks", [False, True])
def test_another_shape_than_the_form_was_made_for_is_refused(looks, shape):
    made = fast_form(make(2, OwnEncoder(2, looks), encoder_depth=3), (2, 2, 40, 40), CPU, "fp32")
    with pytest.raises(InvalidInput, match=r"made for \(2, 2, 40, 40\), or fewer"):
        made(torch.zeros(shape))


def test_a_network_in_training_mode_is_refused():
    network = make(2)
    network.aspp.dropout.train()
    with pytest.raises(InvalidInput, match=r"training mode \(aspp\.dropout\)"):
        fast_form(network, (1, 2, 40, 40), CPU, "fp32")
    with pytest.raises(InvalidInput, match=r"training mode \(all of it\)"):
        fast_form(network.train(), (1, 2, 40, 40), CPU, "fp32")


def test_a_form_is_made_again_only_for_another_shape_or_other_weights():
    network = make(2)
    forms = FastForms(network)
    first = forms.of((1, 2, 40, 40), CPU, "fp32")
    assert forms.of((1, 2, 40, 40), CPU, "fp32") is first
    assert forms.of((1, 2, 48, 40), CPU, "fp32") is not first
    assert forms.of((1, 2, 48, 40), CPU, "bf16").dtype == torch.bfloat16
    first = forms.of((1, 2, 40, 40), CPU, "fp32")
    network.load_state_dict(make(2).state_dict())
    assert forms.of((1, 2, 40, 40), CPU, "fp32") is not first


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_keeps_its_weights_while_a_form_is_made(dims):
    seen = []

    class Watching(OwnEncoder):
        def forward(self, x):
            seen.append([own is its for own, its in zip(network.parameters(), weights, strict=True)])
            return super().forward(x)

    network = make(dims, Watching(dims, looks=False), encoder_depth=3)
    weights = list(network.parameters())
    assert fast_form(network, (1, 2, *(17, 20, 15)[:dims]), CPU, "fp32").how.startswith("folded")
    assert seen
    assert all(map(all, seen))


def test_what_can_not_be_copied_runs_as_written():
    class Single(OwnEncoder):
        def __deepcopy__(self, memo):
            raise AttributeError("there is one of it")

    network = make(2, Single(2, looks=False), encoder_depth=3)
    made = fast_form(network, (1, 2, 17, 20), CPU, "fp32")
    assert "as written (it can't be copied: there is one of it)" in made.how
    with pytest.raises(InvalidInput, match=r"copied \(there is one of it\), so it runs on cpu in torch.float32 only"):
        fast_form(network, (1, 2, 17, 20), CPU, "bf16")


@pytest.mark.parametrize("dims", [2, 3])
def test_threads_may_share_the_forms_of_a_network(dims):
    network = make(dims)
    inputs = [torch.randn(1, 2, *sizes[:dims]) for sizes in ((40, 48, 32), (48, 40, 40), (40, 40, 48))]
    with torch.inference_mode():
        expected = [network.coarse_logits(x) for x in inputs]
    forms = FastForms(network)

    def run(n: int) -> torch.Tensor:
        x = inputs[n % 3]
        return forms.of(x.shape, CPU, "fp32")(x)

    with ThreadPoolExecutor(3) as threads:
        for n, found in enumerate(threads.map(run, range(9))):
            torch.testing.assert_close(found, expected[n % 3], atol=1e-4, rtol=1e-4)


def test_forms_that_were_used_can_be_copied_and_sent_to_another_process():
    forms, x = FastForms(make(2)), torch.randn(1, 2, 40, 40)
    expected = forms.of(x.shape, CPU, "fp32")(x)
    for again in (copy.deepcopy(forms), pickle.loads(pickle.dumps(forms))):
        torch.testing.assert_close(again.of(x.shape, CPU, "fp32")(x), expected, atol=1e-5, rtol=1e-5)


def test_the_rules_leave_only_convolutions_with_what_follows_them_fused():
    if not works("onednn", CPU, torch.float32):
        pytest.skip("this torch has no oneDNN")
    network = make(3, "resnet50")
    names = [str(node.target) for node in fast_form(network, (1, 2, 64, 64, 64), CPU, "fp32").run.graph.nodes]
    assert not any("norm" in name or "relu" in name or "add" in name for name in names)


@pytest.mark.parametrize("encoder", ["seresnext50", "efficientnet_b0"])
def test_batch_normalisation_behind_a_gate_is_folded_into_the_gate(encoder):
    run = fast_form(make(3, encoder), (1, 2, 64, 64, 64), CPU, "fp32").run
    assert not any("norm" in str(node.target) for node in run.graph.nodes)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for the CPU with a C++ compiler")
@pytest.mark.parametrize("dims", [2, 3])
def test_a_compiled_form_gives_the_same_numbers(dims):
    # In a process of its own: torch reads its own files in the encoding of the locale, which Qt's tests change.
    code = f"import test_optimize; test_optimize.compile_and_compare({dims})"
    subprocess.run([sys.executable, "-X", "utf8", "-c", code], cwd=Path(__file__).parent, check=True)


def compile_and_compare(dims: int) -> None:
    network, x = make(dims, encoder_depth=3), torch.randn(1, 2, *(33, 40, 47)[:dims])
    made = FastForms(network).of(x.shape, CPU, "fp32", compiled=True)
    assert made.how.endswith("compiled")
    with torch.inference_mode():
        torch.testing.assert_close(made(x), network.coarse_logits(x), atol=1e-4, rtol=1e-4)


def test_a_threads_float32_stays_exact_when_another_is_done_and_the_users_flags_return():
    reached, done = threading.Event(), threading.Event()

    def other() -> None:
        with form.EXACT:
            reached.set()
            done.wait(10)

    with ThreadPoolExecutor(1) as pool, torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
        with form.EXACT:
            running = pool.submit(other)
            reached.wait(10)
        assert not torch.backends.cudnn.allow_tf32
        done.set()
        running.result()
        assert torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.benchmark


def test_a_graph_is_recorded_on_its_own_gpu_one_at_a_time(monkeypatch):
    class Stream:
        def __init__(self, device: object = "cuda:0") -> None:
            self.device = torch.device(device)

        def wait_stream(self, other: object) -> None:
            assert other is not None

    recorded, underway = [], threading.Semaphore()

    class Recording:  # as torch's, which keeps a stream of the first GPU for all
        def __init__(self, graph: object, stream: Stream | None = None, **_: object) -> None:
            recorded.append((stream or Stream()).device)

        def __enter__(self) -> None:
            assert underway.acquire(blocking=False)
            time.sleep(0.05)

        def __exit__(self, *_: object) -> None:
            underway.release()

    for name, stands_in in {
        "Stream": Stream,
        "graph": Recording,
        "CUDAGraph": lambda: None,
        "current_stream": Stream,
        "stream": nullcontext,
        "device": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stands_in)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, device: zeros(shape, dtype=dtype))
    gpus = [torch.device("cuda", n) for n in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda gpu: form._CudaGraph(torch.relu, (1, 2), gpu, torch.float32), gpus))
    assert sorted(map(str, recorded)) == list(map(str, gpus))


def test_where_torch_has_no_compiler_it_is_said(monkeypatch):
    def without(*_: object) -> None:
        raise RuntimeError("no compiler is here")

    monkeypatch.setattr(torch, "compile", lambda module, **_: without)
    with pytest.raises(InvalidInput, match=r"no compiler is here.*leave --compile"):
        fast_form(make(2), (1, 2, 40, 40), CPU, "fp32", compiled=True)
