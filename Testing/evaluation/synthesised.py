"""How a head model does on images synthesised as for its training, but of another seed.

    python Testing/evaluation/synthesised.py MODEL LABEL_MAPS -o table.csv

Heads of 15 cm are made of every third label map. Reported is the mean Dice per label, and of all labels together, as
the model decides and as it would by the largest score alone (without `foreground_first`, `one_piece` and `ends`).
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from DeepLabSegLib import Segmenter, load_model
from DeepLabSegLib.evaluate import dice
from DeepLabSegLib.image import Geometry, Image
from DeepLabSegLib.preprocess import model_grid
from DeepLabSegLib.training.head_mri import SyntheticHeads, read_head_map
from DeepLabSegLib.training.recipes import RECIPES

SIDE = 150.0  # mm
TOGETHER = "all labels together"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("maps", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=6, help="how many heads (default: 6)")
    parser.add_argument("--seed", type=int, default=987_654)
    options = parser.parse_args()
    segmenter = load_model(options.model)
    bundle = segmenter.bundle
    plain = replace(bundle, foreground_first=False, one_piece=False, ends=())
    segmenters = segmenter, Segmenter(plain, segmenter.network, str(segmenter.device), segmenter.precision)
    heads = next(r.heads for r in RECIPES.values() if r.heads is not None and r.bundle.labels == bundle.labels)
    orientation, mm = str(bundle.input.orientation), float(bundle.input.spacing[-1] or 1)
    cube = Geometry((round(SIDE / mm),) * 3, (mm,) * 3)
    geometry = model_grid(cube, orientation, (None, None, None))
    maps = [read_head_map(path, orientation) for path in sorted(options.maps.glob("*.nii.gz"))[::3]]
    pairs = SyntheticHeads(maps, geometry.shape, (mm,) * 3, options.seed, heads.groups)
    rows = []
    for n in range(options.count):
        image, target = pairs[n]
        wanted = target.numpy()
        found = [one.segment(Image(image.numpy(), geometry)).array for one in segmenters]
        rows.append((n, TOGETHER, *(dice(labels > 0, wanted > 0) for labels in found)))
        for segment in bundle.labels:
            value = segment.value
            rows.append((n, segment.name, *(dice(labels == value, wanted == value) for labels in found)))
    with options.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("head", "label", "dice", "dice_by_largest_score"), *rows])
    for label in (TOGETHER, *(segment.name for segment in bundle.labels)):
        decided, by_largest = np.nanmean([row[2:] for row in rows if row[1] == label], axis=0)
        print(f"{label:28}{decided:.4f}, by the largest score {by_largest:.4f}")  # noqa: T201


if __name__ == "__main__":
    main()
