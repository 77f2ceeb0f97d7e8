"""Moving batches from the loader's memory to the device."""

from __future__ import annotations

import torch
from torch import Tensor


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
