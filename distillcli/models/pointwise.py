"""Pointwise convolutions as matrix products.

In channels_last a 1 x 1 convolution is a linear layer on the last axis, and no number moves. On a CPU this is faster
than the convolution kernels, most of all on the small maps of squeeze-and-excitation and of last stages, where setting
up a convolution costs more than computing it (docs/performance.md).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PointwiseConv2d(nn.Conv2d):
    """A 1 x 1 convolution of stride 1 that computes with ``linear``; parameters and state dict are Conv2d's own."""

    def forward(self, input: Tensor) -> Tensor:
        """B x C x H x W -> B x C' x H x W, equal to the convolution up to the order of its sums."""
        maps_BHWC = functional.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return maps_BHWC.permute(0, 3, 1, 2)


def use_linear(model: nn.Module) -> None:
    """Let every plain 1 x 1 convolution of ``model`` compute with ``linear``; the weights keep their numbers.

    Their strides become those of a matrix, as their gradients have them: DistributedDataParallel warns of any other.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.Conv2d)
            and type(module) in (nn.Conv2d, PointwiseConv2d)  # a subclass may compute its weight or pad its input
            and (module.kernel_size, module.stride, module.padding) == ((1, 1), (1, 1), (0, 0))
            and module.groups == 1
        ):
            module.__class__ = PointwiseConv2d
            module.weight.data = module.weight.data.flatten(1)[:, :, None, None]
