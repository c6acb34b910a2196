"""The parity table: every encoder name in 2D and 3D, against the reference, with random weights.

    python Testing/parity/table.py                 everything, written to Testing/parity/TABLE.md
    python Testing/parity/table.py resnet18 -o -   one name, printed

Needs `medicai`, `keras` and `h5py`. Rows are also kept in a file of results, so that a run can be taken up again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from reference import Case, check_names, compare

from DeepLabSegLib.models import ENCODERS

HERE = Path(__file__).parent
BAR = 1e-4
NORMS = ("batch", "layer", "unit", "group", "instance")
ACTIVATIONS = ("elu", "gelu", "leaky_relu", "hard_sigmoid", "softmax", "celu", "squareplus")

TEXT = """# Parity with medicai 0.0.4

Made by `python Testing/parity/table.py` where medicai, Keras (on torch) and h5py are installed.

Each number is the largest relative difference, max|ours - theirs| / max|theirs|, of a pyramid level or of the logits,
over three networks per row. All weights, biases and batch-norm statistics are drawn at random in the reference, saved
by it as `.weights.h5`, and loaded here by `load_weights`. The bar is {bar:g}; the largest number is {worst:.1e}.

| network | 2D | 3D | decoder |
|---|---|---|---|
{cases}

ConvNeXt has no P5: its depths are 4, 3 and 3. "Parameters" counts running statistics too and is that of both networks
of the first line. Rows without numbers are too large for the machine that made the table: for them every name and shape
of the reference's variables was matched without filling them.

## Encoders

| encoder | | parameters | P1 | P2 | P3 | P4 | P5 | logits |
|---|---|---|---|---|---|---|---|---|
{rows}

## Decoder options

Over resnet18, depth 3, dilation rates 1, 2, 3; `projection_filters` 32 (groups need a multiple of 32). `sync_batch` is
refused by Keras on torch; it is batch normalisation where one process computes.

| option | | logits |
|---|---|---|
{options}

## Where we differ on purpose

- Any input size: `input_shape` decides the dimension and the channels, not the size. Densenet and convnext need at
  least so many voxels along each axis that their last level isn't empty, and say so.
- `head_upsample=None`, the default, brings the output to the input's size for every encoder and size. The reference's
  default, 4, is right only for encoders whose P2 has stride 4 and sizes divisible by 4; given as a number it is obeyed.
- Levels beyond `encoder_depth` are not built; the reference builds them, needs inputs large enough for them, and saves
  their weights, which `load_weights` ignores by name.
- ConvNeXt levels that the decoder doesn't read (P1, and those between P2 and the deepest) are normalised in a backbone
  built on its own, as in the reference's `pyramid_outputs`; in a network built by name these normalisations are left
  out, as they are in the reference's network and its files. Here such levels are compared before the normalisation.
- A reference efficientnet (version 1) built for a size of None pads odd sizes as if they were even. Here padding
  follows the actual size, as in the reference for a given size.
- `classifier_activation="threshold"` is refused at once: the reference accepts the name and fails when it is called.
  `"glu"`, which halves the channels, is refused for the decoder, where the reference fails later.
- `decoder_normalization=False` is refused at once: the reference's check lets it pass, and its layers don't.
- A pre-activation `bottleneck_block_vd` is refused: no variant has it.
"""


def cases(name: str, dims: int) -> list[Case]:
    """Three networks and sizes: deepest, one less, and 3; square, any, and divisible by 8 only."""
    deepest = 4 if name.startswith("convnext") else 5
    plain = {"decoder_dilation_rates": (1, 2, 3), "decoder_aspp_separable": False}
    wide = {"decoder_dilation_rates": (2, 4, 6), "decoder_channels": 64, "num_classes": 1}
    sizes = {2: ((64, 64), (50, 41), (64, 104)), 3: ((32, 32, 32), (33, 38, 47), (40, 32, 48))}[dims]
    middle = max(deepest - 1, 3)
    return [
        Case(name, sizes[0], 1, deepest),
        Case(name, sizes[1], 3, middle, plain),
        Case(name, sizes[2], 1, 3, wide),
    ]


def measure(name: str, dims: int, limit: int) -> dict[str, object]:
    """A row: both counts, and the largest difference per output over `cases`."""
    deepest, *others = cases(name, dims)
    ours, theirs = check_names(deepest)
    row: dict[str, object] = {"name": name, "dims": dims, "ours": ours, "theirs": theirs}
    if ours <= limit:
        worst: dict[str, float] = {}
        for case in (deepest, *others):
            for output, value in compare(case).items():
                worst[output] = max(value, worst.get(output, 0.0))
        row["differences"] = worst
    return row


def measure_option(option: str, value: str, dims: int) -> dict[str, object]:
    """A row of the second table."""
    options = {"decoder_dilation_rates": (1, 2, 3), "projection_filters": 32, "decoder_channels": 64, option: value}
    size = {2: (48, 40), 3: (24, 32, 20)}[dims]
    worst = compare(Case("resnet18", size, 1, 3, options))["logits"]
    return {"name": f"{option}={value}", "dims": dims, "differences": {"logits": worst}}


def write(results: list[dict], path: str) -> None:
    """The table as Markdown."""
    encoders = [row for row in results if "ours" in row]
    options = [row for row in results if "ours" not in row]
    values = [value for row in results for value in row.get("differences", {}).values()]
    described = [
        f"| depth {d3.depth}, channels {d3.channels} | {_size(d2)} | {_size(d3)} | {how} |"
        for d2, d3, how in zip(
            cases("resnet18", 2),
            cases("resnet18", 3),
            ("rates 12, 24, 36, separable", "rates 1, 2, 3, not separable", "rates 2, 4, 6, separable, 64 channels"),
            strict=True,
        )
    ]
    text = TEXT.format(
        bar=BAR,
        worst=max(values, default=0.0),
        cases="\n".join(described),
        rows="\n".join(_encoder_row(row) for row in encoders),
        options="\n".join(f"| {r['name']} | {r['dims']}D | {r['differences']['logits']:.1e} |" for r in options),
    )
    if path == "-":
        sys.stdout.write(text)
    else:
        Path(path).write_text(text, encoding="utf-8")


def _size(case: Case) -> str:
    return " × ".join(map(str, case.size))


def _encoder_row(row: dict) -> str:
    found = row.get("differences", {})
    cells = [f"{found[key]:.1e}" if key in found else "" for key in ("P1", "P2", "P3", "P4", "P5", "logits")]
    count = f"{row['ours']:,}" if row["ours"] == row["theirs"] else f"**{row['ours']:,} ≠ {row['theirs']:,}**"
    return f"| {row['name']} | {row['dims']}D | {count} | {' | '.join(cells)} |"


def main() -> None:
    """Measure what the results don't have yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="encoder names; all by default")
    parser.add_argument("-o", "--out", default=str(HERE / "TABLE.md"), help="where to write; - prints")
    parser.add_argument("--results", type=Path, default=None, help="JSON lines to take up and extend")
    parser.add_argument("--limit", type=int, default=250_000_000, help="parameters up to which networks are filled")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    if arguments.results is not None and arguments.results.exists():
        results = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    have = {(row["name"], row["dims"]) for row in results}
    work = [(name, dims, None) for name in arguments.names or ENCODERS for dims in (2, 3)]
    if not arguments.names:
        work += [(f"decoder_normalization={v}", dims, ("decoder_normalization", v)) for v in NORMS for dims in (2, 3)]
        work += [(f"decoder_activation={v}", dims, ("decoder_activation", v)) for v in ACTIVATIONS for dims in (2, 3)]
    for name, dims, option in work:
        if (name, dims) in have:
            continue
        start = time.monotonic()
        row = measure_option(*option, dims) if option else measure(name, dims, arguments.limit)
        results.append(row)
        worst = max(row.get("differences", {"": 0.0}).values())
        sys.stderr.write(f"{name} {dims}D {worst:.1e} in {time.monotonic() - start:.0f} s\n")
        if arguments.results is not None:
            with arguments.results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
    write(results, arguments.out)


if __name__ == "__main__":
    main()
