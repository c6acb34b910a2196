"""Python's collector is put off where it costs time, and goes on as it did before."""

import gc
from contextlib import suppress

import pytest

from DeepLabSegLib.startup import load_torch, uncollected


@pytest.mark.parametrize("before", [True, False])
def test_the_collector_goes_on_as_it_did_before_whatever_happened_meanwhile(before):
    was = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with suppress(ZeroDivisionError), uncollected():
            assert not gc.isenabled()
            raise ZeroDivisionError
        assert gc.isenabled() == before
    finally:
        (gc.enable if was else gc.disable)()


def test_in_a_program_that_has_torch_already_nothing_is_kept_from_collection():
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    load_torch()
    assert gc.get_freeze_count() == before
