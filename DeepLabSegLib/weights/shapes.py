"""Shapes of a file's tensors in the model's order of axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from DeepLabSegLib.weights.files import Stored

__all__ = ["as_ours", "misfits", "shape_text"]


def misfits(found: Mapping[str, Stored], wanted: Mapping[str, Tensor], model: nn.Module, origin: str) -> list[str]:
    """A line per tensor of the file that has no place in the model or another shape."""
    problems = []
    for name, stored in found.items():
        if name not in wanted:
            problems.append(f"  {stored.name} {shape_text(stored.shape)} has no place: the model has no {name}")
            continue
        shape = tuple(wanted[name].shape)
        here = _our_shape(stored.shape, name, model) if origin == "keras" else stored.shape
        if here != shape:
            problems.append(
                f"  {stored.name} has shape {shape_text(stored.shape)}; {name} in the model has {shape_text(shape)}"
            )
    return problems


def _permutation(name: str, model: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a Keras kernel of `shape` in our order."""
    module = model.get_submodule(name.rpartition(".")[0]) if "." in name else model
    if name.endswith(".weight") and isinstance(module, nn.Linear):
        return (1, 0)
    if name.endswith(".weight") and isinstance(module, nn.Conv2d | nn.Conv3d) and len(shape) > 1:  # else damaged
        *spatial, before_last, last = range(len(shape))
        # Keras's depthwise kernel in 2D is (h, w, channels, 1); all others, also in 3D and in groups of one channel,
        # end with (in, out).
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels and shape[-1] == 1:
            return (before_last, last, *spatial)
        return (last, before_last, *spatial)
    return tuple(range(len(shape)))


def _our_shape(shape: tuple[int, ...], name: str, model: nn.Module) -> tuple[int, ...]:
    """The shape that `as_ours` gives a Keras variable of `shape`."""
    if name.endswith((".grn.weight", ".grn.bias")) and set(shape[:-1]) == {1}:
        return shape[-1:]
    axes = _permutation(name, model, shape)
    return tuple(shape[axis] for axis in axes) if len(axes) == len(shape) else shape


def as_ours(value: Tensor, name: str, model: nn.Module, origin: str) -> Tensor:
    """A file's tensor with our order of axes."""
    if origin != "keras":
        return value
    if name.endswith((".grn.weight", ".grn.bias")):
        return value.reshape(-1)
    return value.permute(_permutation(name, model, tuple(value.shape)))


def shape_text(shape: Sequence[int]) -> str:
    """`shape` as messages show it, also where it has one axis: (64)."""
    return f"({', '.join(map(str, shape))})"
