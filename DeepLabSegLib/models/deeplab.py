"""DeepLabV3+ in 2D and 3D.

Source: Chen et al., ECCV 2018 (arXiv:1802.02611); arguments and layer order follow medicai 0.0.4's `DeepLabV3Plus`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import inf
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from DeepLabSegLib.checks import check_choice, check_count, check_rate, counts, is_count, known_name
from DeepLabSegLib.errors import InvalidInput
from DeepLabSegLib.models.activations import ACTIVATIONS, DECODER_ACTIVATIONS, Activation, activation_name
from DeepLabSegLib.models.encoder import check_input_shape, check_tensor
from DeepLabSegLib.models.encoders import ENCODERS, make_encoder
from DeepLabSegLib.models.layers import DECODER_NORMS, LAYERS, ConvNormAct, resize

__all__ = ["ASPP", "CoarseLogits", "DeepLabSpec", "DeepLabV3Plus"]


@dataclass(frozen=True)
class DeepLabSpec:
    """Everything that shapes a `DeepLabV3Plus`; the fields are the reference's arguments.

    `input_shape` is `(*sizes, channels)`, channels last; its length decides 2D or 3D, and a size may be None.
    `head_upsample` None (unlike the reference's 4) brings the output to the input's size, whatever the encoder.
    """

    encoder_name: str | None
    input_shape: Sequence[int | None]
    encoder_depth: int = 5
    num_classes: int = 1
    decoder_channels: int = 256
    decoder_dilation_rates: Sequence[int] = (12, 24, 36)
    decoder_aspp_separable: bool = True
    decoder_aspp_dropout: float = 0.5
    decoder_normalization: str = "batch"
    decoder_activation: str = "relu"
    projection_filters: int = 48
    classifier_activation: str | None = "sigmoid"
    head_upsample: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_shape", check_input_shape(self.input_shape))
        for field in ("num_classes", "decoder_channels", "projection_filters"):
            check_count(field, getattr(self, field))
            object.__setattr__(self, field, int(getattr(self, field)))
        if not is_count(self.encoder_depth) or self.encoder_depth not in (3, 4, 5):
            raise InvalidInput(f"encoder_depth is {self.encoder_depth!r}; it must be 3, 4 or 5")
        object.__setattr__(self, "encoder_depth", int(self.encoder_depth))
        rates = counts("decoder_dilation_rates", self.decoder_dilation_rates)
        object.__setattr__(self, "decoder_dilation_rates", rates)
        check_choice("decoder_aspp_separable", self.decoder_aspp_separable, (False, True))
        object.__setattr__(self, "decoder_aspp_separable", bool(self.decoder_aspp_separable))
        check_rate("decoder_aspp_dropout", self.decoder_aspp_dropout)
        object.__setattr__(self, "decoder_aspp_dropout", float(self.decoder_aspp_dropout))
        if self.encoder_name is not None:
            object.__setattr__(self, "encoder_name", known_name("encoder_name", self.encoder_name, ENCODERS))
        normalization = known_name("decoder_normalization", self.decoder_normalization, DECODER_NORMS)
        object.__setattr__(self, "decoder_normalization", normalization)
        for field, table in (("decoder_activation", DECODER_ACTIVATIONS), ("classifier_activation", ACTIVATIONS)):
            object.__setattr__(self, field, activation_name(field, getattr(self, field), table))
        object.__setattr__(self, "head_upsample", self._checked_head_upsample())

    def _checked_head_upsample(self) -> float | tuple[float, ...] | None:
        factors: Any = self.head_upsample
        if factors is None:
            return None
        each = isinstance(factors, Iterable)
        listed = tuple(factors) if each else (factors,)
        positive = all(isinstance(n, Real) and not isinstance(n, bool) and 0 < float(n) < inf for n in listed)
        if not positive or (each and len(listed) != self.dims):
            raise InvalidInput(
                f"head_upsample is {factors!r}; give None (to the input's size), a positive number, "
                f"or {self.dims} of them"
            )
        plain = tuple(int(n) if isinstance(n, Integral) else float(n) for n in listed)
        return plain if each else plain[0]

    @property
    def dims(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.input_shape) - 1

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.input_shape[-1]  # type: ignore[return-value]  # checked when made

    @property
    def exclusive(self) -> bool:
        """Whether a voxel has one class, 0 being background; with sigmoid each class is a question of its own."""
        return self.classifier_activation != "sigmoid"

    @property
    def foreground_classes(self) -> int:
        """Classes that are labels."""
        return self.num_classes - self.exclusive


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling. `(N, in, *S) -> (N, out, *S)`.

    A 1x1 branch, a 3x3 branch per dilation rate and a branch that sees the whole image, concatenated and projected.
    The normalisation is batch throughout, as in the reference.
    """

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        rates: Sequence[int],
        *,
        separable: bool,
        dropout: float,
        activation: str,
    ) -> None:
        super().__init__()
        norm = DECODER_NORMS["batch"]

        def branch(channels: int, size: int, rate: int = 1, separable: bool = False) -> ConvNormAct:
            return ConvNormAct(
                dims,
                channels,
                out_channels,
                size,
                norm=norm,
                activation=activation,
                dilation=rate,
                separable=separable,
            )

        self.branches = nn.ModuleList([branch(in_channels, 1)])
        self.branches.extend(branch(in_channels, 3, rate, separable) for rate in rates)
        self.pooled = branch(in_channels, 1)
        self.project = branch((2 + len(rates)) * out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x.mean(dim=tuple(range(2, x.ndim)), keepdim=True))
        parts = [branch(x) for branch in self.branches] + [pooled.expand(-1, -1, *x.shape[2:])]
        return self.dropout(self.project(torch.cat(parts, 1)))


class DeepLabV3Plus(nn.Module):
    """DeepLabV3+ for images and volumes.

    Parameters
    ----------
    encoder_name : a name from `list_encoders()`; give this and `input_shape`, or `encoder`.
    encoder : a module that keeps the encoder contract (`forward` returns the pyramid, P1 first; `channels` and
        `strides` per level) and either has `input_shape` or gets it here.
    input_shape : `(H, W, C)` or `(D, H, W, C)`, channels last; sizes may be None. `forward` takes any size that
        leaves the encoder's last level a voxel.
    encoder_depth : 3, 4 or 5, for ConvNeXt 3 or 4; `P(encoder_depth)` goes into the ASPP and `P2` is the skip.
    num_classes, decoder_channels, decoder_dilation_rates, decoder_aspp_separable, decoder_aspp_dropout,
    decoder_normalization, decoder_activation, projection_filters, classifier_activation : as in the reference.
    head_upsample : None brings the output to the input's size; a factor (or one per axis) is obeyed instead.

    Raises
    ------
    InvalidInput : an argument out of its range, both or neither of `encoder_name` and `encoder`, or an `input_shape` of
        other axes or channels than the encoder's own.

    Examples
    --------
    >>> model = DeepLabV3Plus(encoder_name="resnet18", input_shape=(64, 64, 1), num_classes=3).eval()
    >>> model(torch.zeros(1, 1, 50, 41)).shape
    torch.Size([1, 3, 50, 41])
    """

    def __init__(
        self,
        encoder: nn.Module | None = None,
        encoder_name: str | None = None,
        input_shape: Sequence[int | None] | None = None,
        encoder_depth: int = 5,
        num_classes: int = 1,
        decoder_channels: int = 256,
        decoder_dilation_rates: Sequence[int] = (12, 24, 36),
        decoder_aspp_separable: bool = True,
        decoder_aspp_dropout: float = 0.5,
        decoder_normalization: str = "batch",
        decoder_activation: str = "relu",
        projection_filters: int = 48,
        classifier_activation: str | None = "sigmoid",
        head_upsample: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if (encoder is None) == (encoder_name is None):
            raise InvalidInput("give exactly one of encoder and encoder_name")
        if encoder is not None:
            input_shape = _input_shape(encoder, input_shape)
        self.spec = spec = DeepLabSpec(
            encoder_name=encoder_name,
            input_shape=check_input_shape(input_shape),
            encoder_depth=encoder_depth,
            num_classes=num_classes,
            decoder_channels=decoder_channels,
            decoder_dilation_rates=decoder_dilation_rates,
            decoder_aspp_separable=decoder_aspp_separable,
            decoder_aspp_dropout=decoder_aspp_dropout,
            decoder_normalization=decoder_normalization,
            decoder_activation=decoder_activation,
            projection_filters=projection_filters,
            classifier_activation=classifier_activation,
            head_upsample=head_upsample,
        )
        if encoder is None:
            made = make_encoder(str(encoder_name), spec.input_shape, encoder_depth)
            made.drop_unread((2, encoder_depth))
            encoder = made
        channels = _encoder_channels(encoder, encoder_depth)
        self._channels_read = {level: channels[level - 1] for level in (2, encoder_depth)}
        # Sizes that are multiples of it keep all maps in place; others are allowed.
        self.stride = int(tuple(encoder.strides)[encoder_depth - 1])  # type: ignore[arg-type]

        dims = spec.dims
        norm = DECODER_NORMS[spec.decoder_normalization]
        activation = spec.decoder_activation
        width = spec.decoder_channels
        self.encoder = encoder
        self.aspp = ASPP(
            dims,
            channels[encoder_depth - 1],
            width,
            spec.decoder_dilation_rates,
            separable=spec.decoder_aspp_separable,
            dropout=spec.decoder_aspp_dropout,
            activation=activation,
        )
        self.refine = ConvNormAct(dims, width, width, 3, norm=norm, activation=activation, separable=True)
        self.skip = ConvNormAct(dims, channels[1], spec.projection_filters, 1, norm=norm, activation=activation)
        self.fuse = ConvNormAct(
            dims, width + spec.projection_filters, width, 3, norm=norm, activation=activation, separable=True
        )
        self.head = LAYERS[dims].conv(width, spec.num_classes, 1)
        self.classifier = Activation(str(spec.classifier_activation))
        nn.init.normal_(self.head.weight, std=0.01)  # training starts from even probabilities

    @classmethod
    def from_spec(cls, spec: DeepLabSpec) -> DeepLabV3Plus:
        """The network that `spec` describes, with fresh weights."""
        return cls(**asdict(spec))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, *S) -> (N, num_classes, *S)`, after `classifier_activation`."""
        return self.classifier(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """`forward` before `classifier_activation`."""
        low = self.coarse_logits(x)
        return resize(low, self.output_size(low.shape[2:], x.shape[2:]))

    def coarse_logits(self, x: Tensor) -> Tensor:
        """`logits` before they are enlarged: `(N, C, *S) -> (N, num_classes, *sizes of P2)`."""
        check_tensor(x, self.spec.dims, self.spec.in_channels)
        pyramid = self.encoder(x)
        self._check_pyramid(pyramid)
        skip = self.skip(pyramid[1])
        deep = resize(self.refine(self.aspp(pyramid[self.spec.encoder_depth - 1])), skip.shape[2:])
        return self.head(self.fuse(torch.cat([deep, skip], 1)))

    def _check_pyramid(self, pyramid: object) -> None:
        """Raise `InvalidInput` unless `pyramid` is what a user's own encoder says of itself."""
        depth, name = self.spec.encoder_depth, type(self.encoder).__name__
        if not isinstance(pyramid, list | tuple) or len(pyramid) < depth:
            given = len(pyramid) if isinstance(pyramid, list | tuple) else "no list"
            raise InvalidInput(f"the encoder {name} returns {given}; it must return a list of P1 to P{depth}")
        for level, wanted in self._channels_read.items():
            found = pyramid[level - 1].shape[1]
            if found != wanted:
                raise InvalidInput(f"P{level} of the encoder {name} has {found} channels; its `channels` say {wanted}")

    def output_size(self, low: torch.Size, full: torch.Size) -> tuple[int, ...]:
        """What `logits` are enlarged to."""
        factors = self.spec.head_upsample
        if factors is None:
            return tuple(full)
        listed = factors if isinstance(factors, Sequence) else (factors,) * len(low)
        if all(factor <= 1 for factor in listed):  # the reference resizes only to enlarge
            return tuple(low)
        return tuple(int(size * factor) for size, factor in zip(low, listed, strict=True))


class CoarseLogits(nn.Module):
    """A network as a module whose `forward` is `coarse_logits`; enlarging is the blending's, or the loss's."""

    def __init__(self, network: DeepLabV3Plus) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.coarse_logits(x)


def _input_shape(encoder: nn.Module, given: Sequence[int | None] | None) -> Sequence[int | None] | None:
    """The encoder's own `input_shape`, where it has one, which `given` may differ from in its sizes alone."""
    own = getattr(encoder, "input_shape", None)
    if own is None or given is None:
        return given if own is None else own
    (*sizes, channels), (*own_sizes, own_channels) = check_input_shape(given), check_input_shape(own)
    if (len(sizes), channels) != (len(own_sizes), own_channels):
        raise InvalidInput(
            f"input_shape is {tuple(given)}, and the encoder's own {tuple(own)}; leave it out, or make another encoder"
        )
    return own


def _encoder_channels(encoder: nn.Module, depth: int) -> tuple[int, ...]:
    """The encoder's channels per level, or `InvalidInput` where it doesn't keep the contract up to `depth`."""
    if not isinstance(encoder, nn.Module):
        raise InvalidInput(f"encoder is {encoder!r}; give a module, or a name from list_encoders() as encoder_name")
    name = type(encoder).__name__
    missing = [field for field in ("channels", "strides") if not hasattr(encoder, field)]
    if missing:
        raise InvalidInput(f"the encoder {name} lacks {' and '.join(missing)}, a number per level")
    channels, strides = (
        counts(f"{field} of the encoder {name}", getattr(encoder, field)) for field in ("channels", "strides")
    )
    levels = min(len(channels), len(strides))
    if levels < depth:
        raise InvalidInput(f"encoder_depth is {depth}, and the encoder has {levels} levels; choose at most that")
    return channels
