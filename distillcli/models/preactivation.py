"""A stage's map before the activation that ends it.

timm gives the map after it. Which activation that is, or that there is none, is seen by watching the tensors of one
forward pass, as each family builds its blocks in its own way; nothing is looked up by the name of a model or a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.weak import WeakTensorKeyDictionary

# Of a negative response these leave nothing or next to nothing.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)


@contextmanager
def watched_activations(net: nn.Module) -> Iterator[WeakTensorKeyDictionary]:
    """Within: tensor -> path of the activation that made it, of every forward pass of ``net``."""
    makers = WeakTensorKeyDictionary()

    def note(path: str, output: Tensor) -> None:
        makers[output] = path

    with ExitStack() as hooks:
        for path, module in net.named_modules():
            if isinstance(module, ACTIVATIONS):
                hook = module.register_forward_hook(lambda _module, _inputs, output, path=path: note(path, output))
                hooks.enter_context(hook)
        yield makers


def ending(stage_BCHW: Tensor, makers: WeakTensorKeyDictionary) -> str | None:
    """What ends a stage: the path of an activation; "" for nothing, where the map is as it was before one; or None.

    Nothing ends a convolution, a batch norm, a sum of these or a pool of them. Whatever else computed the map, as from
    tokens or by a gate, cannot be told apart from an activation. The map must carry its graph.
    """
    if stage_BCHW in makers:
        path: str = makers[stage_BCHW]
        return path
    return "" if _is_linear(stage_BCHW.grad_fn) else None


def _is_linear(node: Node | None) -> bool:
    """Of the operation that made a map: whether it is one of the above."""
    if node is None:
        return False
    if node.name() in ("AddBackward0", "MaxPool2DWithIndicesBackward0"):
        return all(_is_linear(operand) for operand, _ in node.next_functions)
    return node.name() in ("ConvolutionBackward0", "NativeBatchNormBackward0")


@contextmanager
def kept_inputs(activations: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Within: what each of the activations was given last; a copy, as they may compute in place."""
    given: dict[int, Tensor] = {}

    def keep(key: int, value: Tensor) -> None:
        given[key] = value.clone()

    with ExitStack() as hooks:
        for key, module in activations.items():
            hooks.enter_context(module.register_forward_pre_hook(lambda _module, inputs, key=key: keep(key, inputs[0])))
        yield given
