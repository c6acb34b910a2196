"""Python's collector is put off where it costs time, and goes on as it did before; threads wait briefly."""

import gc
import os
import subprocess
import sys
from contextlib import suppress

import pytest

from DeepLabSegLib.startup import load_torch, uncollected, wait_briefly


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


CHOSEN = [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
COMMAND = "from DeepLabSegLib.cli import main; main(['encoders'])"
WORKER = "import DeepLabSegLib.worker as worker; worker.Worker.run = lambda self: None; worker.main()"


@pytest.mark.parametrize(("given", "spins"), CHOSEN)
@pytest.mark.parametrize("begun", [COMMAND, WORKER])
def test_threads_of_our_own_processes_wait_briefly_unless_somebody_chose_otherwise(begun, given, spins):
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    ask = "import atexit, os, sys; atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'), file=sys.stderr))"
    done = subprocess.run([sys.executable, "-c", f"{ask}; {begun}"], env=environment, input="", text=True,
                          capture_output=True, check=True)  # fmt: skip
    assert done.stderr.strip() == str(spins)


def test_a_program_that_has_torch_already_keeps_its_environment(monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    wait_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_in_a_program_that_has_torch_already_nothing_is_kept_from_collection():
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    load_torch()
    assert gc.get_freeze_count() == before
