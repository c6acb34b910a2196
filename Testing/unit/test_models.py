import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers import make_spec
from torch import nn

from DeepLabSegLib import DeepLabV3Plus, list_encoders
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models import DeepLabSpec
from DeepLabSegLib.models.activations import ACTIVATIONS
from DeepLabSegLib.models.encoders import make_encoder
from DeepLabSegLib.schema import dumps, to_json


def sizes(dims: int) -> tuple[int, ...]:
    return (37, 50) if dims == 2 else (17, 20, 33)


def test_the_two_examples_of_the_readme_run():
    image = DeepLabV3Plus(
        encoder_name="resnet50", input_shape=(224, 224, 3), num_classes=1, classifier_activation="sigmoid"
    )
    volume = DeepLabV3Plus(
        encoder_name="seresnext50", input_shape=(96, 96, 96, 3), num_classes=1, classifier_activation="sigmoid"
    )
    assert image.encoder.pyramid_outputs["P2"].shape == (256, 56, 56)
    assert volume.encoder.pyramid_outputs["P5"].shape == (2048, 3, 3, 3)


def test_the_catalogue_is_printed_and_returned(capsys):
    names = list_encoders("senet")
    assert names == [name for name in list_encoders() if name.startswith("se")]
    assert len(names) == 12
    assert "seresnext101" in capsys.readouterr().out


@pytest.mark.parametrize("depth", [3, 4, 5])
@pytest.mark.parametrize("dims", [2, 3])
def test_any_input_size_gives_an_output_of_the_same_size(dims, depth):
    model = DeepLabV3Plus(
        encoder_name="resnet18", input_shape=(*(None,) * dims, 1), encoder_depth=depth, num_classes=2
    ).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 1, *sizes(dims))).shape == (2, 2, *sizes(dims))


def test_a_given_head_upsample_is_obeyed_as_in_the_reference():
    for factor, expected in [
        (4, (52, 64)),
        (1, (13, 16)),
        ((2, 4), (26, 64)),
        ((1, 4), (13, 64)),
        (1.5, (19, 24)),
        (0.5, (13, 16)),
    ]:
        model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(50, 61, 1), head_upsample=factor).eval()
        with torch.inference_mode():
            assert model(torch.randn(1, 1, 50, 61)).shape[2:] == expected


@pytest.mark.parametrize("dims", [2, 3])
def test_softmax_scores_add_up_to_one_and_sigmoid_scores_lie_between(dims):
    x = torch.randn(1, 1, *(16,) * dims)
    softmax = DeepLabV3Plus.from_spec(make_spec(dims, 3, "softmax")).eval()(x)
    sigmoid = DeepLabV3Plus.from_spec(make_spec(dims, 3, "sigmoid")).eval()(x)
    torch.testing.assert_close(softmax.sum(1), torch.ones_like(softmax[:, 0]))
    assert 0 <= sigmoid.min() <= sigmoid.max() <= 1


@pytest.mark.parametrize("size", [(1, 48), (16, 16, 48), (48, 1, 16)])
@pytest.mark.parametrize("name", ["resnet50_vd", "seresnet50_vd"])
def test_a_thin_image_goes_through_average_pooling(name, size):
    encoder = make_encoder(name, (*size, 1)).eval()
    with torch.inference_mode():
        pyramid = encoder(torch.randn(1, 1, *size))
    assert [tuple(level.shape[1:]) for level in pyramid] == [p.shape for p in encoder.pyramid_outputs.values()]


def test_average_pooling_of_one_slice_is_that_of_the_image():
    flat, volume = (make_encoder("resnet50_vd", (*(None,) * dims, 1)).stages[1][0].shortcut.pool for dims in (2, 3))
    for size in ((1, 1), (1, 5), (6, 1), (4, 7)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(volume(x[:, :, None])[:, :, 0], flat(x))


@pytest.mark.parametrize("norm", ["batch", "layer", "unit", "instance", "sync_batch", "group"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_decoder_normalisation_takes_an_image_whose_deepest_map_is_one_voxel(norm, dims):
    options = {"decoder_channels": 32, "projection_filters": 32, "decoder_normalization": norm}
    model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(*(32,) * dims, 1), **options)
    x = torch.randn(1, 1, *(32,) * dims)
    assert torch.isfinite(model(x)).all()
    assert torch.isfinite(model.eval()(x)).all()


@pytest.mark.parametrize("norm", ["batch", "layer", "unit", "instance", "sync_batch", "GROUP"])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_decoder_normalisation_runs(norm, dims):
    model = DeepLabV3Plus(
        encoder_name="resnet18",
        input_shape=(*(None,) * dims, 1),
        encoder_depth=3,
        decoder_channels=32,
        projection_filters=32,
        decoder_normalization=norm,
        decoder_activation="gelu",
        decoder_aspp_separable=False,
    ).eval()
    assert torch.isfinite(model(torch.randn(1, 1, *(16,) * dims))).all()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0", "convnext_tiny", "seresnet50"])
def test_every_convolution_begins_with_he_initialisation(name, dims):
    """Weights of variance 2 over the numbers that each output sums up; the head, which no ReLU follows, less."""
    model = DeepLabV3Plus(
        encoder_name=name, input_shape=(*(32,) * dims, 1), encoder_depth=4 if "convnext" in name else 5
    )
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d) and m is not model.head]
    assert len(convolutions) > 10
    for conv in convolutions:
        found = float(conv.weight.detach().double().square().mean()) * conv.weight[0].numel() / 2
        assert found == pytest.approx(1, abs=6 * (2 / conv.weight.numel()) ** 0.5), "six standard deviations"
        assert conv.bias is None or not conv.bias.any()
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_model_takes_a_single_image_in_training_too(dims):
    model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(*(32,) * dims, 1))
    model(torch.randn(1, 1, *(32,) * dims)).sum().backward()
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_network_can_be_pickled_whatever_its_activations(name):
    options = {} if name == "glu" else {"decoder_activation": name}
    spec = replace(make_spec(2, 4), classifier_activation=name, **options)
    model, x = DeepLabV3Plus.from_spec(spec).eval(), torch.randn(1, 1, 16, 16)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), model(x), equal_nan=True)


class ThreeLevels(nn.Module):
    channels, strides = (4, 8, 8), (1, 2, 4)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 4, 3, 1, 1), nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)])

    def forward(self, x):
        pyramid = []
        for conv in self.convs:
            x = conv(x)
            pyramid.append(x)
        return pyramid


def test_any_module_that_keeps_the_contract_is_an_encoder():
    model = DeepLabV3Plus(encoder=ThreeLevels(), input_shape=(None, None, 1), encoder_depth=3, num_classes=2).eval()
    assert model(torch.randn(1, 1, 21, 30)).shape == (1, 2, 21, 30)
    deeper = DeepLabV3Plus(encoder=make_encoder("resnet18", (None, None, 1)), encoder_depth=3).eval()
    assert deeper(torch.randn(1, 1, 21, 30)).shape == (1, 1, 21, 30)
    assert deeper.stride == 8


@pytest.mark.parametrize("own", [None, (None, None, 1), (64, 64, 1)])
def test_an_input_shape_beside_an_encoder_may_differ_from_its_own_in_sizes_alone(own):
    encoder = ThreeLevels()
    encoder.input_shape = own
    spec = DeepLabV3Plus(encoder=encoder, input_shape=(32, 32, 1), encoder_depth=3).spec
    assert spec.input_shape == (own or (32, 32, 1))
    encoder.input_shape = (64, 64, 1)
    for given in ((64, 64, 3), (64, 64, 64, 1)):
        with pytest.raises(InvalidInput, match=r"and the encoder's own \(64, 64, 1\); leave it out"):
            DeepLabV3Plus(encoder=encoder, input_shape=given, encoder_depth=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"encoder_name": "resnet19"}, "resnet19.*'resnet18'"),
        ({"encoder_name": None}, "exactly one"),
        ({"encoder": ThreeLevels()}, "exactly one"),
        ({"input_shape": (32, 1)}, r"\(H, W, channels\)"),
        ({"input_shape": (32, 0, 1)}, "positive"),
        ({"input_shape": (32, 32, None)}, "channels"),
        ({"encoder_depth": 6}, "3, 4 or 5"),
        ({"encoder_name": "convnext_v2_atto"}, "encoder_depth is 5, and the encoder has 4 levels"),
        ({"num_classes": 0}, "positive integer"),
        ({"decoder_channels": 2.5}, "positive integer"),
        ({"decoder_dilation_rates": ()}, "one or more"),
        ({"decoder_aspp_dropout": 1.0}, r"\[0, 1\)"),
        ({"decoder_normalization": "batches"}, "'batch'"),
        ({"decoder_normalization": "group"}, "multiples of 32"),
        ({"decoder_activation": "rellu"}, "'relu'"),
        ({"classifier_activation": 3}, "a name or None"),
        ({"head_upsample": (2, 2, 2)}, "2 of them"),
        ({"head_upsample": (4,)}, "2 of them"),
        ({"head_upsample": []}, "2 of them"),
        ({"head_upsample": float("inf")}, "a positive number"),
        ({"num_classes": True}, "positive integer"),
        ({"input_shape": 64.0}, r"input_shape is 64\.0.*\(H, W, channels\)"),
        ({"encoder_depth": 5.0}, "3, 4 or 5"),
        ({"decoder_dilation_rates": 6}, "is 6.*one or more positive integers in a list"),
        ({"decoder_dilation_rates": None}, "one or more"),
        ({"decoder_dilation_rates": [True]}, "one or more"),
        ({"decoder_aspp_dropout": None}, r"is None.*\[0, 1\)"),
        ({"decoder_aspp_separable": "no"}, "decoder_aspp_separable is 'no'; choose one of False, True"),
        ({"head_upsample": True}, "head_upsample is True.*a positive number"),
        ({"encoder_name": None, "encoder": "resnet18"}, "encoder is 'resnet18'; give a module, or a name"),
        ({"encoder_name": None, "encoder": nn.Identity()}, "lacks channels and strides"),
    ],
)
def test_a_bad_argument_is_named_with_what_would_be_right(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        DeepLabV3Plus(**{"encoder_name": "resnet18", "input_shape": (32, 32, 1), **arguments})


@pytest.mark.parametrize("dims", [2, 3])
def test_numpys_integers_count_as_pythons(dims):
    plain = {"input_shape": (*(32,) * dims, 1), "encoder_depth": 4, "num_classes": 3, "decoder_dilation_rates": (1, 2)}
    given = {key: np.int64(v) if isinstance(v, int) else tuple(map(np.int64, v)) for key, v in plain.items()}
    model = DeepLabV3Plus(encoder_name="resnet18", **given)
    spec = DeepLabV3Plus(encoder_name="resnet18", **plain).spec
    assert dumps(to_json(model.spec)) == dumps(to_json(spec))
    assert model.eval()(torch.zeros(1, 1, *(32,) * dims)).shape == (1, 3, *(32,) * dims)


def test_a_spec_says_names_in_small_letters_whatever_was_given():
    given = {"encoder_name": "ResNet18", "decoder_normalization": "Layer", "decoder_activation": "GELU"}
    assert (
        asdict(DeepLabSpec(input_shape=(32, 32, 1), **given)).items()
        >= {k: v.lower() for k, v in given.items()}.items()
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_numpys_fractions_count_as_pythons(dims):
    plain = {"decoder_aspp_dropout": 0.25, "head_upsample": (4.0,) * dims}
    given = {"decoder_aspp_dropout": np.float32(0.25), "head_upsample": np.full(dims, 4, np.float32)}
    specs = [replace(make_spec(dims), **options) for options in (given, plain)]
    assert dumps(to_json(specs[0])) == dumps(to_json(specs[1]))


@pytest.mark.parametrize("shape", [(1, 2, 32, 32), (1, 1, 32), (1, 1, 8, 32, 32), (1, 1, 0, 32)])
def test_a_tensor_of_another_shape_is_refused_in_words(shape):
    model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(32, 32, 1)).eval()
    with pytest.raises(InvalidInput, match=r"takes \(batch, 1, height, width\)"):
        model(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda levels: dict(enumerate(levels)), "ThreeLevels returns no list; it must return a list of P1 to P3"),
        (lambda levels: levels[-1], "returns no list"),
        (lambda levels: levels[:2], "returns 2; it must return a list of P1 to P3"),
        (
            lambda levels: [levels[0], levels[0], levels[2]],
            "P2 of the encoder ThreeLevels has 4 channels; its .* say 8",
        ),
    ],
)
def test_an_encoder_that_returns_something_else_is_told_what_to_return(change, words):
    class Changed(ThreeLevels):
        def forward(self, x):
            return change(super().forward(x))

    Changed.__name__ = "ThreeLevels"
    model = DeepLabV3Plus(encoder=Changed(), input_shape=(None, None, 1), encoder_depth=3).eval()
    with pytest.raises(InvalidInput, match=words):
        model(torch.randn(1, 1, 21, 30))


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18", 5),
        ("resnet50_v2", 5),
        ("seresnet50_v2", 4),
        ("densenet121", 5),
        ("efficientnet_b0", 5),
        ("convnext_v2_atto", 3),
        ("convnext_v2_atto", 4),
    ],
)
def test_every_parameter_that_is_trained_gets_a_gradient_as_processes_that_share_a_training_need(name, depth):
    model = DeepLabV3Plus(encoder_name=name, input_shape=(32, 32, 1), encoder_depth=depth)
    model(torch.randn(2, 1, 32, 32)).mean().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_an_encoder_with_too_few_levels_is_refused():
    encoder = ThreeLevels()
    encoder.strides = (1, 2)
    with pytest.raises(InvalidInput, match="2 levels"):
        DeepLabV3Plus(encoder=encoder, input_shape=(None, None, 1), encoder_depth=3)
    with pytest.raises(InvalidInput, match="3 levels"):
        DeepLabV3Plus(encoder=ThreeLevels(), input_shape=(None, None, 1), encoder_depth=4)
