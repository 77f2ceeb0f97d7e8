"""Moving batches from the loader's memory to the device."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def send(array: NDArray[Any], device: torch.device) -> Tensor:
    """A small array of this step as a tensor on the device.

    From pinned memory to a GPU: a plain copy would hold the host until all that it has queued is computed.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Upload:
    """Moves a batch to the device.

    A GPU copies it from pinned memory on a separate stream, while the previous step, already queued by the host, is
    still computing. On a single stream the copy would wait for that step to end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        on_gpu = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Tensor) -> Tensor:
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            copy = batch.to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        copy.record_stream(computing)  # else its memory could be reused for the next copy while it is being read
        return copy
