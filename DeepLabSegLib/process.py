"""What the system thinks of this process: who goes first, and how much memory it has held."""

from __future__ import annotations

import sys

__all__ = ["peak_bytes", "yield_to_others"]

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    BELOW_NORMAL_PRIORITY_CLASS = 0x4000

    class _MemoryCounters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of the Windows API."""

        _fields_ = [
            ("cb", wintypes.DWORD),
            ("PageFaultCount", wintypes.DWORD),
            ("PeakWorkingSetSize", ctypes.c_size_t),
            *((f"others{n}", ctypes.c_size_t) for n in range(7)),
        ]

    _kernel = ctypes.WinDLL("kernel32")
    _kernel.GetCurrentProcess.restype = wintypes.HANDLE
    _kernel.SetPriorityClass.argtypes = [wintypes.HANDLE, wintypes.DWORD]
    _kernel.K32GetProcessMemoryInfo.argtypes = [wintypes.HANDLE, ctypes.POINTER(_MemoryCounters), wintypes.DWORD]

    def yield_to_others() -> None:
        """Let programs that a person is looking at go first."""
        _kernel.SetPriorityClass(_kernel.GetCurrentProcess(), BELOW_NORMAL_PRIORITY_CLASS)

    def peak_bytes() -> int:
        """The largest memory that this process has held."""
        counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
        _kernel.K32GetProcessMemoryInfo(_kernel.GetCurrentProcess(), counters, counters.cb)
        return counters.PeakWorkingSetSize

else:
    import os
    import resource

    def yield_to_others() -> None:
        """Let programs that a person is looking at go first."""
        os.nice(5)

    def peak_bytes() -> int:
        """The largest memory that this process has held."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
