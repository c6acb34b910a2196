"""medicai's layer names, and where each is in our networks.

A table per family: a pattern for the reference's layer name, and the module of ours, in which `{0}`, `{1}` ... stand
for the pattern's groups. Names are the layers' own, which Keras (3.7 and later) writes beside each layer's variables;
the numbered paths in the file (`conv2d_3`) aren't read, since they count layers of a class in an order of Keras's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from DeepLabSegLib.errors import WeightsError

__all__ = ["DECODER", "ENCODERS", "Table", "layer_keys", "rename"]

Table = tuple[tuple[str, str], ...]

PARTS = {"bn": "norm", "layernorm": "norm"}

DECODER: Table = (
    (r"aspp_(conv|bn)_(\d+)", "aspp.branches.{1-}.{0}"),
    (r"aspp_conv_(\d+)/(depthwise|pointwise)_conv", "aspp.branches.{0-}.conv.{1}"),
    (r"(conv|bn)_pooling", "aspp.pooled.{0}"),
    (r"(conv|bn)_projection", "aspp.project.{0}"),
    (r"aspp_projection", "refine.conv"),
    (r"aspp_projection/(depthwise|pointwise)_conv", "refine.conv.{0}"),
    (r"aspp_projection_bn", "refine.norm"),
    (r"low_level_projection", "skip.conv"),
    (r"low_level_projection_bn", "skip.norm"),
    (r"decoder_conv1", "fuse.conv"),
    (r"decoder_conv1/(depthwise|pointwise)_conv", "fuse.conv.{0}"),
    (r"decoder_conv_bn", "fuse.norm"),
    (r"\(conv\)", "head"),  # the one convolution that the reference leaves unnamed
)

RESNET: Table = (
    (r"conv(\d+)_(conv|bn)", "stem.{1}{0}"),
    (r"stack(\d+)_block(\d+)_0_(conv|bn)", "stages.{0}.{1}.shortcut.{2}"),
    (r"stack(\d+)_block(\d+)_([1-9])_(conv|bn)", "stages.{0}.{1}.body.{3}{2}"),
    (r"stack(\d+)_block(\d+)_pre_activation_bn", "stages.{0}.{1}.pre_norm"),
    (r"stack(\d+)_block(\d+)_squeeze_excitation/conv1", "stages.{0}.{1}.body.se.reduce"),
    (r"stack(\d+)_block(\d+)_squeeze_excitation/conv2", "stages.{0}.{1}.body.se.expand"),
    (r"post_bn", "post_norm"),
)

DENSENET: Table = (
    (r"stem_dense_(conv|bn)", "stem.{0}"),
    (r"block(\d+)_layer(\d+)_bn(1|2)", "stages.{0}.{1}.norm{2}"),
    (r"block(\d+)_layer(\d+)_conv1x1", "stages.{0}.{1}.conv1"),
    (r"block(\d+)_layer(\d+)_conv3x3", "stages.{0}.{1}.conv2"),
    (r"block(\d+)_trans_conv1x1", "transitions.{0}.conv"),
    (r"block(\d+)_trans_bn", "transitions.{0}.norm"),
    (r"final_bn", "post_norm"),
)

EFFICIENTNET: Table = (
    (r"normalization", "rescale"),
    (r"stem_(conv|bn)", "stem.{0}"),
    (r"block(\d+)(.)_(expand|project)_(conv|bn)", "stages.{0-}.{1a}.body.{2}.{3}"),
    (r"block(\d+)(.)_dwconv", "stages.{0-}.{1a}.body.depthwise.conv"),
    (r"block(\d+)(.)_bn", "stages.{0-}.{1a}.body.depthwise.norm"),
    (r"block(\d+)(.)_se_(reduce|expand)", "stages.{0-}.{1a}.body.se.{2}"),
    (r"top_(conv|bn)", "top.{0}"),
)

CONVNEXT: Table = (
    (r"stem_(conv|layernorm)", "downsamplings.0.{0}"),
    (r"downsampling_(conv|layernorm)_(\d+)", "downsamplings.{1+}.{0}"),
    (r"stage_(\d+)_block_(\d+)_depthwise_conv", "stages.{0}.{1}.depthwise"),
    (r"stage_(\d+)_block_(\d+)_layernorm", "stages.{0}.{1}.norm"),
    (r"stage_(\d+)_block_(\d+)_(?:pointwise_conv_1|dense_expand)", "stages.{0}.{1}.expand"),
    (r"stage_(\d+)_block_(\d+)_(?:pointwise_conv_2|dense_contract)", "stages.{0}.{1}.contract"),
    (r"stage_(\d+)_block_(\d+)_layer_scale", "stages.{0}.{1}.scale"),
    (r"stage_(\d+)_block_(\d+)_\(global_response_normalization\)", "stages.{0}.{1}.grn"),
    (r"pyramid_feature_norm_(\d+)", "norms.{0-}"),
)

ENCODERS: dict[str, Table] = {
    "resnet": RESNET,
    "densenet": DENSENET,
    "efficientnet": EFFICIENTNET,
    "convnext": CONVNEXT,
    "senet": RESNET,
}

CHANGES: dict[str, Callable[[str], str]] = {
    "": lambda text: PARTS.get(text, text),
    "-": lambda text: str(int(text) - 1),
    "+": lambda text: str(int(text) + 1),
    "a": lambda letter: str(ord(letter) - ord("a")),
    "h": lambda text: str(int(text) // 2),
    "n": lambda text: ("conv", "norm")[int(text)],
}
"""What `{0}`, `{0-}`, `{0+}`, `{0a}`, `{0h}` and `{0n}` do with a pattern's group."""

UNNAMED = re.compile(r"(conv)[23]d|(global_response_normalization)|(?:depthwise_conv3d|normalization|dense)")
SESSION_NUMBER = re.compile(r"(.*?)(?:_(\d+))?")


def rename(key: str, table: Table) -> str | None:
    """Our module for the reference's layer `key`, or None where `table` doesn't know it."""
    for pattern, target in table:
        match = re.fullmatch(pattern, key)
        if match:
            return _filled(target, match.groups())
    return None


def _filled(target: str, groups: tuple[str, ...]) -> str:
    return re.sub(r"\{(\d+)([-+ahn]?)\}", lambda m: CHANGES[m[2]](groups[int(m[1])]), target)


def layer_keys(layers: Mapping[str, str], holders: Iterable[str]) -> dict[str, str]:
    """A key per group of `holders` that the tables know: `{group: key}`.

    `layers` has the layers' names by group. A layer that the reference leaves unnamed gets one from Keras, numbered
    through the session (`conv2d_7`): it is known by its parent and attribute
    (`stack0_block0_squeeze_excitation/conv1`), or at the top level by its class in parentheses. Response
    normalisations, one to a block and unnamed, are counted off against the blocks, since the session's numbers grow
    from block to block.
    """
    keys: dict[str, str] = {}
    responses: list[tuple[int, str]] = []
    for group in holders:
        name = layers.get(group)
        if name is None:
            keys[group] = group
            continue
        stem, number = SESSION_NUMBER.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches anything
        unnamed = UNNAMED.fullmatch(stem)
        parent, _, attribute = group.rpartition("/")
        if not unnamed:
            keys[group] = name
        elif parent in layers:
            keys[group] = f"{layers[parent]}/{attribute}"
        elif unnamed[2]:
            responses.append((int(number or 0), group))
        else:
            keys[group] = f"({unnamed[1]})" if unnamed[1] else stem
    if responses:
        blocks = {m.groups() for name in layers.values() if (m := re.fullmatch(r"stage_(\d+)_block_(\d+)_.*", name))}
        ordered = sorted((int(stage), int(block)) for stage, block in blocks)
        if len(ordered) != len(responses):
            raise WeightsError(
                f"the file has {len(responses)} global response normalisations for {len(ordered)} blocks; "
                "they go in pairs: it is incomplete"
            )
        for (stage, block), (_, group) in zip(ordered, sorted(responses), strict=True):
            keys[group] = f"stage_{stage}_block_{block}_(global_response_normalization)"
    return keys
