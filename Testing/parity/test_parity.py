"""A network of every block type, in both dimensions, against the reference. The whole table is made by `table.py`."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("medicai", reason="needs medicai, the reference implementation", exc_type=ImportError)

from reference import Case, compare
from table import BAR, cases, measure

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
)


def label(case: Case) -> str:
    return f"{case.name}-{'x'.join(map(str, case.shape))}-P{case.depth}"


@pytest.mark.parametrize("case", BLOCK_TYPES, ids=label)
def test_every_pyramid_level_and_the_logits_equal_the_references(case: Case) -> None:
    differences = compare(case)
    assert max(differences.values()) <= BAR, differences


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_whole_table_stays_below_the_bar(name: str, dims: int) -> None:
    row = measure(name, dims, limit=250_000_000)
    assert row["ours"] == row["theirs"]
    assert max(row.get("differences", {"": 0.0}).values()) <= BAR
    assert {case.depth for case in cases(name, dims)} >= {3}
