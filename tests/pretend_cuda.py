"""A CUDA device that is none: tensors that say `cuda`, keep their numbers in host memory, and are as strict as a GPU.

For machines without one. Every operation runs on the CPU, and while `pretend()` holds:

- an operation over tensors of both sides raises, as it would on a GPU (a lone number may come along);
- whatever makes the host wait for a GPU (a number read back, a copy over, a shape that hangs on values) is noted with
  the line of the project that asked for it;
- attention's CUDA kernel for packed sequences is said out in plain products, from what its documentation promises.

What only hardware can tell (speed, rounding of half precision, memory) it does not tell.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda", 0)
PROJECT = Path(__file__).parents[1] / "mlb_batch"
aten = torch.ops.aten
# What a GPU can only answer when it has come so far.
VALUES_NEEDED = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.is_nonzero.default, aten._unique2.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor,
    aten.isin.Tensor_Tensor, aten.item.default, aten.bincount.default,
}  # fmt: skip

AS_ONE = {
    functional.scaled_dot_product_attention, functional.multi_head_attention_forward, Tensor.contiguous, Tensor.nonzero,
    Tensor.__invert__,
}  # fmt: skip
READ_BACK = {
    Tensor.tolist, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__bool__, Tensor.__index__, Tensor.__format__,
    Tensor.__repr__,
}  # fmt: skip


class OnCuda(Tensor):
    """The outside of a tensor on the device; its numbers are `host`."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnCuda:
        made: OnCuda = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype, device=CUDA
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of pretend()")


class Device(TorchDispatchMode):
    """Runs what is asked of the device, and notes what makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, ...]] = []  # each as the project's functions that led to it
        self.calls: Counter[str] = Counter()
        self.recording: Graph | None = None
        self.free_bytes = 2**40
        self.share = 1.0  # of its memory, for this process
        self.capability = (9, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        there = [one for one in tensors if isinstance(one, OnCuda)]
        target = _target(func, args, kwargs)
        if target is None and not there:
            return func(*args, **kwargs)
        if func is aten.copy_.default or func.overloadpacket in (aten.to, aten._to_copy):
            return self.copied(func, args, kwargs, target)
        to_cuda = bool(there) or (target is not None and target.type == "cuda")
        if to_cuda:
            self._one_side(func, tensors)
            self.calls[str(func)] += 1
        if there and (func in VALUES_NEEDED or _by_truth(func, args)):
            self.waits_here()
        return self.run(KERNELS.get(func, func), args, kwargs, to_cuda if target is None else target.type == "cuda")

    def run(self, kernel: Callable[..., Any], args: Any, kwargs: Any, to_cuda: bool = True) -> Any:
        if self.recording is not None:
            self.recording.before(kernel, args)
        out = self._back(kernel(*_inside(args), **_inside(kwargs)), args, to_cuda)
        if self.recording is not None:
            self.recording.ran.append((kernel, args, kwargs, out))
        return out

    def copied(self, func: Any, args: Any, kwargs: Any, target: torch.device | None) -> Any:
        """Over to the other side and back, the only operations that may see both."""
        to_cuda = isinstance(args[0], OnCuda) if target is None else target.type == "cuda"
        given = args[1] if func is aten.copy_.default else args[0]
        if isinstance(given, OnCuda) != to_cuda and not kwargs.get("non_blocking"):
            self.waits_here()
        out = self.run(func, args, kwargs, to_cuda)
        return args[0] if func is aten.copy_.default else out

    def _one_side(self, func: Any, tensors: list[Tensor]) -> None:
        """As torch has it: a lone number of the host may join in, and indices are brought over."""
        strangers = [one for one in tensors if not isinstance(one, OnCuda) and one.dim()]
        if strangers and func in (aten.index.Tensor, aten.index_put_.default):
            self.waits_here()
        elif strangers and any(isinstance(one, OnCuda) for one in tensors):
            raise RuntimeError(f"{func}: tensors on the CPU and on the device")

    def waits_here(self) -> None:
        if self.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        frames = [one for one in traceback.extract_stack() if one.filename.startswith(str(PROJECT))]
        self.waits.append(tuple(f"{Path(one.filename).name}:{one.name}" for one in frames))

    def _back(self, out: Any, args: Any, to_cuda: bool) -> Any:
        """What was written in place is what was given; everything else is new."""
        known = {id(one.host): one for one in tree_flatten(args)[0] if isinstance(one, OnCuda)}

        def back(one: Any) -> Any:
            if not isinstance(one, Tensor) or not to_cuda:
                return one
            return known.get(id(one)) if id(one) in known else OnCuda(one)

        return tree_map(back, out)


class Whole(TorchFunctionMode):
    """What asks for the device itself before anyone could run it here, as one operation each."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            func is torch._has_compatible_shallow_copy_type
        ):  # how a module asks whether its weights can stay where they are
            return False
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            self._device.waits_here()
            return OnCuda(func(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.pin_memory:
            return args[0]
        if func in READ_BACK and isinstance(args[0], OnCuda):
            self._device.waits_here()
            return func(args[0].host, *args[1:])
        if func is Tensor.copy_ and isinstance(args[0], OnCuda):
            return self._device.copied(aten.copy_.default, args, kwargs, None)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], OnCuda):
            return self._indexed(func, *args)
        if func in AS_ONE and isinstance(args[0], OnCuda):
            if func is Tensor.nonzero:
                self._device.waits_here()
            given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
            assert all(isinstance(one, OnCuda) for one in given), func
            with torch._C._DisableTorchDispatch():
                return self._device.run(func, args, kwargs)
        return func(*args, **kwargs)

    def _indexed(self, func: Any, given: OnCuda, index: Any, *value: Any) -> Any:
        device = self._device
        picked = [one for one in tree_flatten(index)[0] if isinstance(one, Tensor)]
        if any(one.dtype == torch.bool or (one.dim() and not isinstance(one, OnCuda)) for one in picked):
            device.waits_here()
        if any(isinstance(one, Tensor) and not isinstance(one, OnCuda) for one in value):
            device.waits_here()
        device.calls[func.__name__] += 1
        with torch._C._DisableTorchDispatch():
            return device.run(func, (given, index, *value), {})


class Graph:
    """A recorded piece of work, as CUDA has it: recording runs nothing; to replay is to do the same to the same places,
    with every number of the host as it was.
    """

    def __init__(self) -> None:
        self.ran: list[tuple[Any, Any, Any, Any]] = []
        self._were: list[tuple[Tensor, Tensor]] = []

    def before(self, kernel: Any, args: Any) -> None:
        """What is about to be written over will have to be put back."""
        schema = getattr(kernel, "_schema", None)
        if kernel is Tensor.__setitem__ or (schema is not None and schema.is_mutable):
            self._were += [(one.host, one.host.clone()) for one in tree_flatten(args)[0] if isinstance(one, OnCuda)]

    def undo(self) -> None:
        with torch._C._DisableTorchDispatch():
            for host, was in reversed(self._were):
                host.copy_(was)
        self._were.clear()

    def replay(self) -> None:
        with torch._C._DisableTorchDispatch():
            for kernel, args, kwargs, out in self.ran:
                again = kernel(*_inside(args), **_inside(kwargs))
                for one, new in zip(tree_flatten(out)[0], tree_flatten(again)[0], strict=True):
                    if isinstance(one, OnCuda):
                        one.host.copy_(new)


@contextmanager
def pretend() -> Iterator[Device]:
    device = Device()

    @contextmanager
    def recorded(graph: Graph) -> Iterator[None]:
        device.recording = graph
        try:
            yield
        finally:
            device.recording = None
            graph.undo()

    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as undo:
        for name, stand_in in (
            ("_lazy_init", lambda: None), ("CUDAGraph", Graph), ("graph", recorded),
            ("mem_get_info", lambda _: (device.free_bytes, device.free_bytes)),
            ("memory_reserved", lambda _: 0), ("memory_allocated", lambda _: 0),
            ("get_device_capability", lambda _: device.capability),
            ("set_per_process_memory_fraction", lambda share, _: setattr(device, "share", share)),
            ("get_per_process_memory_fraction", lambda _: device.share),
        ):  # fmt: skip
            undo.callback(setattr, torch.cuda, name, getattr(torch.cuda, name))
            setattr(torch.cuda, name, stand_in)
        for mode in (torch.inference_mode(), Whole(device), device):
            undo.enter_context(mode)
        yield device


def _home(one: Any) -> Any:
    """What it is on the host: a tensor's numbers, and the CPU for the device."""
    if isinstance(one, OnCuda):
        return one.host
    return torch.device("cpu") if isinstance(one, torch.device) else one


def _inside(value: Any) -> Any:
    return tree_map(_home, value)


def _target(func: Any, args: Any, kwargs: Any) -> torch.device | None:
    """The device that an operation was told to make its answer on."""
    told = [one for one in [*args, *kwargs.values()] if isinstance(one, torch.device)]
    if func.overloadpacket is aten.to and len(args) > 1 and isinstance(args[1], Tensor):
        return args[1].device
    return told[0] if told else None


def _by_truth(func: Any, args: Any) -> bool:
    """Picking by true and false: how many there are is only known on the device."""
    if func not in (aten.index.Tensor, aten.index_put_.default):
        return False
    return any(one is not None and one.dtype == torch.bool for one in args[1])


def _flash(query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int,
           dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: float | None = None,
           window_size_left: int | None = None, window_size_right: int | None = None,
           seqused_k: Tensor | None = None, **rest: Any) -> tuple[Tensor, ...]:  # fmt: skip
    """Sequences packed without gaps between their queries; of the keys from each bound on, those in use."""
    assert dropout_p == 0 and not any(rest.values()) and window_size_left in (None, -1)
    # The kernel takes halves; doubles stand in for them where rounding would hide a mistake.
    assert query.dtype in (torch.float16, torch.bfloat16, torch.float64) and query.shape[-1] % 8 == 0, query.dtype
    whole_numbers = [one for one in (cum_seq_q, cum_seq_k, seqused_k) if one is not None]
    assert all(one.dtype == torch.int32 and one.is_contiguous() for one in whole_numbers)
    assert all(x.stride(-1) == 1 for x in (query, key, value))
    causal = is_causal or window_size_right == 0
    bounds_q, bounds_k = cum_seq_q.tolist(), cum_seq_k.tolist()
    used = [b - a for a, b in pairwise(bounds_k)] if seqused_k is None else seqused_k.tolist()
    assert bounds_q[0] == 0 and bounds_q[-1] == len(query) and max(used) <= max_k
    out = torch.empty_like(query)
    for i, count in enumerate(used):
        rows, keys = slice(bounds_q[i], bounds_q[i + 1]), slice(bounds_k[i], bounds_k[i] + count)
        assert rows.stop - rows.start <= max_q and bounds_k[i] + count <= bounds_k[i + 1] <= len(key)
        out[rows] = _plain(query[rows], key[keys], value[keys], scale, causal)
    nothing = query.new_empty(0)
    return out, nothing, nothing, nothing, nothing


def _plain(q_QHd: Tensor, k_Shd: Tensor, v_Shd: Tensor, scale: float | None, causal: bool) -> Tensor:
    groups = q_QHd.shape[1] // k_Shd.shape[1]
    q = q_QHd.double().transpose(0, 1)
    k, v = (x.double().transpose(0, 1).repeat_interleave(groups, 0) for x in (k_Shd, v_Shd))
    logits = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        rows, keys = logits.shape[1:]
        logits = logits.masked_fill(torch.ones(rows, keys, dtype=torch.bool).triu(keys - rows + 1), -torch.inf)
    return (logits.softmax(-1) @ v).transpose(0, 1).to(q_QHd.dtype)


KERNELS: dict[Any, Callable[..., Any]] = {aten._flash_attention_forward.default: _flash}
