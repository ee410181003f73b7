"""Peak memory of a computation on the meta device, which has shapes and no memory.

with counting_fused_attention(), MetaMemoryTracer(unet) as tracer:
    unet(...)                     # meta tensors
tracer.peak                       # bytes of all tensors that were alive at once, without the UNet's weights
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from trainer.sdxl.protocols import HasWeights

META = torch.device("meta")


class MetaMemoryTracer(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it that are alive at the same time.

    Why not PyTorch's own tools: `torch.distributed._tools.MemTracker` registers a gradient hook on every
    parameter and raises for a frozen base ("cannot register a hook on a tensor that doesn't require
    gradient", torch 2.x). FakeTensorMode only computes shapes and counts nothing; one step of SDXL (7,000
    operations) takes it 2.6 s, against 1.7 s here with counting, because results of known shapes are cached
    (see `_run`). Statistics of `torch.cuda` need the card and the memory that the estimate is for.

    Attributes:
        now: bytes that are alive at this moment.
        peak: the largest value of `now`.
        calls: operations that compute something, not those that only make a view.

    Args:
        models: their weights are not counted.
    """

    def __init__(self, *models: HasWeights) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.calls = 0
        weights = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        storages = [tensor.untyped_storage() for tensor in weights]
        # A tensor and its views have different Python objects but one storage, and each access to
        # `untyped_storage()` makes a new Python wrapper, so `id()` cannot identify it. `_cdata` is the
        # address of the C++ StorageImpl: the only identity that views share. PyTorch's own tools use it too.
        # Without it, every view would be counted again. The weights' storages are kept here, so that their
        # addresses are not given to another storage meanwhile.
        self._seen: dict[int, Any] = {storage._cdata: storage for storage in storages}
        self._known_results: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs one operation and counts the storages of its results."""
        self.calls += _kind_of(func) != "views"
        result = self._run(func, args, kwargs or {})
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Returns the result of an operation, from the cache of shapes where that is possible.

        The meta device computes shapes in Python, which takes half a millisecond for each operation. SDXL
        repeats the same operations on the same shapes in 70 blocks, so results are remembered by function,
        structure of the arguments and (shape, stride, dtype) of each tensor. This is valid only for
        operations that make new tensors or write into one that they return; views are always run, because
        their result must share its storage.
        """
        leaves, structure = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if function in _SHARING or not tensors or not all(tensor.is_meta for tensor in tensors):
            return function(*args, **kwargs)
        kind, target = _kind_of(function), kwargs.get("out", args[0] if args else None)
        key = (function, structure, *map(_signature, leaves))
        if kind == "views" or key not in self._known_results:
            result = function(*args, **kwargs)
            outputs, structure = tree_flatten(result)
            makes_tensors = kind == "makes" and all(isinstance(leaf, torch.Tensor | None) for leaf in outputs)
            if makes_tensors or (kind == "writes" and result is target):
                signatures = [leaf if leaf is None else _signature(leaf) for leaf in outputs]
                self._known_results[key] = signatures, structure
            return result
        if kind == "writes":
            return target
        signatures, structure = self._known_results[key]
        return tree_unflatten([_empty_like(signature) for signature in signatures], structure)

    def _add(self, storage: torch.UntypedStorage) -> None:
        """Counts a storage from now until it is freed."""
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._seen[key] = weakref.ref(storage, lambda _, key=key, size=size: self._remove(key, size))

    def _remove(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.now -= size


# Their schema declares that they make a new tensor or write into one, but the result shares or replaces a
# storage.
_SHARING = {
    torch.ops.aten._unsafe_view.default,
    torch.ops.aten.resize_.default,
    torch.ops.aten.set_.source_Storage,
}


def _signature(leaf: Any) -> tuple[Any, ...]:
    """The part of an argument that decides the result's shape."""
    if isinstance(leaf, torch.Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype
    return type(leaf), leaf


def _empty_like(signature: tuple[Any, ...] | None) -> torch.Tensor | None:
    if signature is None:
        return None
    shape, stride, dtype = signature
    return torch.empty_strided(shape, stride, dtype=dtype, device=META)


@functools.cache
def _kind_of(operation: Any) -> str:
    """Returns what an operator's schema declares.

    `makes` new tensors, `writes` into its result, or returns `views`.
    """
    inputs, outputs = operation._schema.arguments, operation._schema.returns
    aliased = [end for end in (*inputs, *outputs) if end.alias_info is not None]
    if not aliased:
        return "makes"
    writes = len(outputs) == 1 and len(aliased) == 2 and all(end.alias_info.is_write for end in aliased)
    return "writes" if writes else "views"


@contextlib.contextmanager
def counting_fused_attention() -> Iterator[None]:
    """Counts attention as fused kernels hold it: inputs, output and one number for each query.

    The meta device has no fused kernel: its decomposition makes the T x T matrix of scores, which at 1024 px
    would be counted as gigabytes that no training allocates. Therefore `F.scaled_dot_product_attention` is
    replaced in its module while the context is open, and put back afterwards. A `TorchFunctionMode` would be
    the cleaner means, but modes are thread-local and autograd recomputes checkpointed blocks inside its own
    backward call, where the mode is not active: recomputed attention would be counted with its matrix.
    Callers look the function up in the module at each call (diffusers and `trainer.adapter` both do), so the
    replacement reaches all of them, and no other thread of the process must compute attention meanwhile.
    """
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> Any:
        return _MetaAttention.apply(query, key, value)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = original


class _MetaAttention(torch.autograd.Function):
    """Attention on shapes alone; saves for the backward pass what a fused kernel saves."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **_: Any) -> Any:
        query, key, value = args
        output = torch.empty_like(query)
        log_sum_exp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum_exp)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])
