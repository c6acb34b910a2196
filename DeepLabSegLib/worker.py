"""A `Segmenter` behind a pipe: a process of its own, so that a window never freezes.

One JSON object per line goes in and comes out. Every request has an `id`, which its answers carry.

- `{"id", "do": "hello"}` is answered by `{"id", "result": {"torch", "devices"}}`.
- `{"id", "do": "describe", "choice"}`: `ModelChoice` in; `{"id", "result": {"model", "assumed"}}` comes out.
- `{"id", "do": "segment", "folder", "channels", "choice", "options", "surfaces"}`: `channels` lists
  `{"file", "affine"}`, `.npy` files in `folder` of `(k, j, i)` or `(k, j, i, C)` and 4x4 matrices from (k, j, i) to RAS
  mm; `options` is `SegmentOptions`. While it runs come `{"id", "progress": {"stage", "done", "total", "note"}}`; then
  `{"id", "result"}` with the names of the files that it wrote into `folder`.
- `{"id", "do": "cancel"}` stops the request of that id between two tiles or two surfaces. The end of the input stops
  everything.

What fails is answered by `{"id", "error": {"kind", "message"}}`, where `kind` is the class of the exception.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from DeepLabSegLib.errors import Cancelled, DeepLabSegError
from DeepLabSegLib.image import SCORE_MAPS, Geometry, Image, Labels
from DeepLabSegLib.process import peak_bytes, yield_to_others
from DeepLabSegLib.schema import from_json, to_json
from DeepLabSegLib.startup import load_torch, wait_briefly

__all__ = ["ENVIRONMENT", "Worker", "main"]

ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}
"""What this process should be started with. A network's maps lie among small pieces of memory; of these, freed ones
that GNU's C library would keep at hand keep the room on both sides of them from being joined and used again, which
costs up to half of a window's peak. Others ignore it.
"""

LET_GO_WITHIN_S = 30.0
"""When the window has gone, a run may go on for so long, since Windows deletes no file that is mapped."""


class Worker:
    """Answers requests in the order in which they come; `cancel` overtakes."""

    def __init__(self, requests: IO[str], answers: IO[str]) -> None:
        self._answers = answers
        self._requests = requests
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue()
        self._cancelled: set[int] = set()
        self._window_gone = False
        self._warm: Any = None

    def run(self) -> None:
        """Answer until the input ends, which ends the process."""
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        with suppress(OSError):  # nobody is there to hear the answer
            self._serve()
        reader.join(LET_GO_WITHIN_S)  # it ends the process when the files are gone

    def _serve(self) -> None:
        while True:
            request = self._waiting.get()
            try:
                content = {"result": getattr(self, f"_{request['do']}")(request)}
            except Exception as error:  # whatever it is, the window must hear of it
                if not isinstance(error, DeepLabSegError):
                    traceback.print_exc()
                content = {"error": {"kind": type(error).__name__, "message": str(error) or type(error).__name__}}
            # After the exception is gone, and with it every hold on the files: Windows deletes no mapped file.
            self._answer(request, **content)

    def _read(self) -> None:
        folder = None
        with suppress(ValueError):  # the window went in the middle of a line
            for line in self._requests:
                request = json.loads(line)
                if "folder" in request:
                    folder = Path(request["folder"])
                if request["do"] == "cancel":
                    self._cancelled.add(request["id"])
                else:
                    self._waiting.put(request)
        # The window is gone: nobody will fetch the result or tidy up.
        self._window_gone = True
        end = time.monotonic() + LET_GO_WITHIN_S
        while folder is not None and folder.exists() and time.monotonic() < end:
            shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.05)  # where a file is mapped, until the run has let go of it
        os._exit(0)

    def _answer(self, request: dict[str, Any], **content: Any) -> None:
        self._answers.write(json.dumps({"id": request["id"], **content}) + "\n")
        self._answers.flush()

    # --- requests, each named after its `do` ---

    def _hello(self, _: dict[str, Any]) -> dict[str, Any]:
        load_torch()
        import torch

        from DeepLabSegLib.devices import list_devices

        return {"torch": torch.__version__, "devices": to_json(list_devices())}

    def _describe(self, request: dict[str, Any]) -> dict[str, Any]:
        from DeepLabSegLib.session import ModelChoice, describe_model

        bundle, assumed = describe_model(from_json(ModelChoice, request["choice"]))
        return {"model": to_json(bundle), "assumed": list(assumed)}

    def _segment(self, request: dict[str, Any]) -> dict[str, Any]:
        from DeepLabSegLib.devices import kept_pages
        from DeepLabSegLib.preprocess import stack_channels
        from DeepLabSegLib.segmenter import Progress, SegmentOptions
        from DeepLabSegLib.session import ModelChoice, WarmModel

        def on_progress(progress: Progress) -> bool:
            self._answer(request, progress=to_json(progress))
            return request["id"] not in self._cancelled and not self._window_gone

        folder = Path(request["folder"])
        on_progress(Progress("load", 0, 1))
        self._warm = self._warm or WarmModel()
        segmenter = self._warm.get(from_json(ModelChoice, request["choice"]))
        image = stack_channels([_read_channel(folder, channel) for channel in request["channels"]])
        started = time.perf_counter()
        with kept_pages():
            labels = segmenter.segment(image, from_json(SegmentOptions, request["options"]), on_progress)
        seconds = time.perf_counter() - started
        result = {"labels": "labels.npy", "segments": to_json(labels.segments), "model": segmenter.bundle.name}
        np.save(folder / "labels.npy", labels.array)
        for name in SCORE_MAPS:
            if (array := getattr(labels, name)) is not None:
                result[name] = f"{name}.npy"
                np.save(folder / result[name], array)
        if request["surfaces"]:
            result["surfaces"] = _write_surfaces(
                folder, labels, lambda done: on_progress(Progress("surface", done, len(labels.segments)))
            )
        return result | {
            "seconds": seconds,
            "device": str(segmenter.device),
            "precision": segmenter.precision,
            "peak_bytes": peak_bytes(),
            "volumes_ml": labels.volumes_ml(),
        }


def _read_channel(folder: Path, channel: dict[str, Any]) -> Image:
    array = np.load(folder / channel["file"], mmap_mode="r", allow_pickle=False)
    geometry = Geometry.from_affine(array.shape[:3], channel["affine"])
    return Image(np.moveaxis(array, -1, 0) if array.ndim == 4 else array, geometry)


def _write_surfaces(folder: Path, labels: Labels, on_done: Callable[[int], bool]) -> dict[str, str]:
    from DeepLabSegLib.surface import closed_surface, write_surface

    files = {}
    for done, segment in enumerate(labels.segments):
        if not on_done(done):
            raise Cancelled("cancelled while surfaces were made; nothing was changed")
        surface = closed_surface(labels, segment)
        if surface is not None:
            files[segment.id] = f"{segment.id}.vtp"
            write_surface(surface, folder / files[segment.id])
    return files


def main() -> None:
    """Serve standard input and output. What libraries print goes to standard error, and they have nothing to read."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    # On Windows whoever asks what kind of file standard input is waits for a read of it that is going on, and some
    # libraries ask while they are loaded (numpy issue 24290): they would wait for the window's next request.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # What weights don't tell is in the answer to `describe`; the window's log needs no warning of it.
    warnings.filterwarnings("ignore", module="DeepLabSegLib.session")
    yield_to_others()
    wait_briefly()
    Worker(requests, answers).run()


if __name__ == "__main__":
    main()
