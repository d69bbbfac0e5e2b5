"""Recorded network passes: a GPU repeats their kernels without a word from the CPU.

In a small batch the kernels of a pass are short, and the GPU waits for the CPU to launch each. A CUDA graph has all of
them in one launch. `torch.compile(mode="reduce-overhead")` makes such graphs too, but overwrites the results of one
pass in the next, and samplers of several steps need them longer; and a denoiser's times, which are on the CPU, would
cut its graph into pieces. Here the network alone is recorded, compiled or not, and its result is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sde_diffusion.errors import UserError

Network = Callable[[Tensor, Tensor, Mapping[str, Any]], Any]
"""(x, c_noise, conditions) -> the network's output."""

_MOST = 8
"""Shapes that are recorded; passes of further ones are not, as each recording holds memory."""

_WARMUPS = 3
"""Passes before the recording, in which libraries choose their kernels, allocate memory and compile."""


@dataclass
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor

    def replay(self, inputs: list[Tensor]) -> Tensor:
        """The output for other inputs of the same shapes."""
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.graph.replay()
        return self.output.clone()


class CUDAGraphs:
    """Records a network's pass once for each shape of its inputs, and replays it.

    Only passes without gradients, outside training, of inputs on a CUDA device are recorded; the others are made as
    usual. The network's weights may change in place, but must stay where they are in memory. Copies, also those that
    are pickled, begin without recordings.
    """

    def __init__(self) -> None:
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, network: Network, x: Tensor, c_noise: Tensor, conditions: Mapping[str, Any]) -> Any:
        """network(x, c_noise, conditions).

        Raises:
            UserError: If the pass cannot be recorded, as one that waits for the device.
        """
        leaves, spec = tree_flatten((x, c_noise, dict(conditions)))
        if not self._can_record(leaves):
            return network(x, c_noise, conditions)
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        kinds = tuple((leaf.shape, leaf.stride(), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (x.device, str(spec), kinds)
        if key not in self._recordings:
            if len(self._recordings) == _MOST:
                return network(x, c_noise, conditions)
            self._recordings[key] = self._record(network, leaves, spec)
        return self._recordings[key].replay(inputs)

    def __deepcopy__(self, memo: Any) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    @staticmethod
    def _can_record(leaves: list[Any]) -> bool:
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return all(leaf.is_cuda if isinstance(leaf, Tensor) else leaf is None for leaf in leaves)

    @torch.inference_mode(False)  # in which later calls may not be, and could not write to its tensors
    @torch.no_grad()
    def _record(self, network: Network, leaves: list[Any], spec: TreeSpec) -> _Recording:
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        arguments = tree_unflatten(own, spec)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARMUPS):
                    network(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            # Recordings are replayed one after the other, and so can share their memory.
            pool = next((each.graph.pool() for each in self._recordings.values()), None)
            with torch.cuda.graph(graph, pool=pool):
                output = network(*arguments)
        except RuntimeError as error:
            if "captur" not in str(error):
                raise
            raise UserError(f"a pass of this network cannot be recorded as a CUDA graph: {error}") from error
        return _Recording(graph, [each for each in own if isinstance(each, Tensor)], output)
