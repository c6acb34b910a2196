"""A segmentation of nodes with a model, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from DeepLabSegLib.image import Labels
from DeepLabSegLib.mrml.reading import read_volumes
from DeepLabSegLib.mrml.writing import check_output_node, write_segmentation

if TYPE_CHECKING:  # a panel uses this folder before torch is here
    from DeepLabSegLib.segmenter import OnProgress, Segmenter, SegmentOptions

__all__ = ["segment_volumes"]


def segment_volumes(
    volume_nodes: Sequence[Any],
    segmentation_node: Any,
    segmenter: Segmenter,
    options: SegmentOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Labels:
    """Segment a scan, a volume node per channel, into `segmentation_node`, whose segments are replaced.

    The segmentation comes to lie under the first volume's transform, with that volume as its reference geometry. All
    nodes must be in a scene. Until the result is complete no node is changed. Returns the labels.

    Raises
    ------
    InvalidInput : what `read_volumes` and `Segmenter.segment` raise, or an output that is no segmentation.
    Cancelled : `on_progress` returned False.
    """
    check_output_node(segmentation_node)
    labels = segmenter.segment(read_volumes(volume_nodes), options, on_progress)
    write_segmentation(labels, segmentation_node, volume_nodes[0])
    return labels
