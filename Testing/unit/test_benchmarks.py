"""What is measured works; the figures are for `Testing/benchmarks/run.py`."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import forms


@pytest.mark.parametrize("size", [[32, 40], [24, 32, 40]])
def test_one_window_goes_through_the_plain_and_the_fast_form(size, monkeypatch):
    monkeypatch.setattr("DeepLabSegLib.devices.kept_pages", nullcontext)  # for processes that only measure
    assert forms.plain("resnet18", size)().shape == (1, 3, *size)
    assert forms.fast("resnet18", size, "fp32")().shape == (3, *(1,) * (3 - len(size)), *size)


def test_windows_of_a_volume_are_stitched_to_labels(monkeypatch):
    monkeypatch.setattr(forms, "WINDOW", 16)
    found = forms.stitch_ours([20, 24, 30], classes=3)()
    assert found.labels.shape == (1, 20, 24, 30)
    assert found.uncertainty is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_peak_of_memory_is_seen():
    # In a process of its own: here the memory may be that of an earlier test.
    code = "import forms; print(forms.measure(lambda: bytearray(50_000_000))['peak'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(forms.__file__).parent, check=True, capture_output=True, text=True
    )
    assert 45e6 < float(done.stdout) < 100e6
