"""From images to volumes: a 2D network's weights in the 3D network of the same name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from DeepLabSegLib.errors import WeightsError
from DeepLabSegLib.weights.load import check_memory
from DeepLabSegLib.weights.report import LoadReport, listed

__all__ = ["inflate", "inflated"]


def inflate(flat: nn.Module, model: nn.Module) -> LoadReport:
    """Carry the weights of `flat`, a 2D encoder or network, over to `model`, the same one in 3D.

    Kernels are repeated along depth and divided by their depth (Carreira and Zisserman, CVPR 2017), so that a stack of
    equal slices gives the 2D answer in every slice. Padding at the first and last slices makes it differ there, as far
    as the kernels reach; networks with gates or response normalisations (efficientnet, senet, convnext_v2), which see
    the whole volume, differ a little everywhere, and so does a decoder, by its pooling. `model` changes only if
    everything fits.

    Raises
    ------
    WeightsError : a tensor is missing on either side, or is no kernel with an axis more, and the message names it and
        both shapes; or a model was made on torch's device "meta", without numbers.

    Examples
    --------
    >>> from DeepLabSegLib.models import make_encoder
    >>> volume = make_encoder("resnet18", (None, None, None, 1), 3)
    >>> report = inflate(make_encoder("resnet18", (None, None, 1), 3), volume)
    >>> [len(names) for names in report.changed.values()]
    [10]
    """
    check_memory(flat)
    check_memory(model)
    source, target = flat.state_dict(), model.state_dict()
    problems = [f"  {name} {tuple(target[name].shape)} is missing in the 2D model" for name in target.keys() - source]
    report = LoadReport()
    for name, value in source.items():
        if name not in target:
            problems.append(f"  {name} {tuple(value.shape)} has no place in the 3D model")
            continue
        shape = target[name].shape
        if value.ndim == 4 and tuple(shape) == (*shape[:3], *value.shape[2:]) and shape[:2] == value.shape[:2]:
            report.changed.setdefault("kernels repeated along depth and divided by it", []).append(name)
        elif value.shape != shape:
            problems.append(f"  {name} has shape {tuple(value.shape)} in 2D and {tuple(shape)} in 3D")
        report.loaded[name] = name
    if problems:
        raise WeightsError(f"these aren't one network in 2D and 3D:\n{listed(sorted(problems))}")
    with torch.no_grad():
        for name, value in source.items():
            shape = target[name].shape
            target[name].copy_(value if value.shape == shape else inflated(value, shape[2]))
    return report


def inflated(kernel: Tensor, depth: int) -> Tensor:
    """`(out, in, H, W) -> (out, in, depth, H, W)`, the same in every slice; their sum is `kernel`."""
    return kernel.unsqueeze(2).expand(*kernel.shape[:2], depth, *kernel.shape[2:]) / depth
