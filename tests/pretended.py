"""A pretended accelerator: tensors that lie on another device than the CPU's, with a CPU's numbers behind them.

Torch's device `meta` stands for it. Inside `with Accelerator():` whatever is created or moved there is computed all the
same, and what a GPU refuses is refused: operations on tensors of both sides, the CPU's generators over there,
`.numpy()`, what has no deterministic form. So code that forgets to move a tensor fails without a GPU, too.
"""

from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
MOVES = {torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten._copy_from}
BY_INDEX = {torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_}
"""Torch takes an index from the CPU wherever the values lie."""
UNSTABLE = {
    "adaptive_max_pool2d_backward", "_adaptive_avg_pool2d_backward", "_ctc_loss_backward", "avg_pool3d_backward",
    "fractional_max_pool2d_backward", "grid_sampler_2d_backward", "histc", "kthvalue", "max_unpool2d",
    "max_pool3d_with_indices_backward", "median.dim", "nanmedian.dim", "nll_loss2d_forward", "put_",
    "reflection_pad1d_backward", "reflection_pad2d_backward", "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward", "upsample_linear1d_backward",
}  # fmt: skip
"""What CUDA has in no deterministic form (torch.use_deterministic_algorithms); cumsum and bincount sometimes."""


class Far(torch.Tensor):
    """A tensor over there; `near` holds its numbers."""

    @staticmethod
    def __new__(cls, near):
        assert type(near) is torch.Tensor, type(near)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=DEVICE,
        )
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return carry_out(func, args, kwargs or {})

    def __tensor_flatten__(self):
        return ["near"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Far(inner["near"])

    def __repr__(self):
        return f"Far({self.near!r})"

    def tolist(self):
        return self.near.tolist()

    def __reduce_ex__(self, protocol):
        return self.near.__reduce_ex__(protocol)  # as from a file, loaded to the CPU

    @property
    def data(self):
        return Far(self.near)

    @data.setter
    def data(self, value):
        self.near = value.near


class Accelerator(TorchDispatchMode):
    """While this is entered, there is such a device. Autocast does not know it; it takes it for a CPU."""

    def __enter__(self):
        self.stack = ExitStack()
        plain, enabled = torch.autocast.__init__, torch.is_autocast_enabled
        known = lambda name: "cpu" if name == DEVICE.type else name  # noqa: E731
        autocast = lambda one, name, *more, **named: plain(one, known(name), *more, **named)  # noqa: E731
        self.stack.enter_context(patch.object(torch.autocast, "__init__", autocast))
        self.stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda name: enabled(known(name))))
        self.stack.enter_context(FromNumbers())
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.stack.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return carry_out(func, args, kwargs or {})


class FromNumbers(TorchFunctionMode):
    """Torch does not read numbers for a tensor on `meta`: they are read here, then moved."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs and not isinstance(args[0], torch.Tensor):
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.Tensor.new_tensor and isinstance(args[0], Far):
            return args[0].near.new_tensor(*args[1:], **kwargs).to(DEVICE)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Far):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(torch.tensor(one) if isinstance(one, list) else one for one in places)
            args = args[0], places, *args[2:]
        return func(*args, **kwargs)


def near(value):
    return value.near if isinstance(value, Far) else value


def far(value):
    return Far(value) if isinstance(value, torch.Tensor) and not isinstance(value, Far) else value


def carry_out(func, args, kwargs):
    """One operation, on the numbers behind its arguments."""
    leaves = tree_leaves((args, kwargs))
    over_there = any(isinstance(leaf, Far) for leaf in leaves)
    asked = kwargs.get("device")
    to_there = asked.type == DEVICE.type if asked is not None else over_there
    if not over_there and not to_there:
        return func(*args, **kwargs)
    assert all(type(leaf) is not torch.Tensor or leaf.device.type == "cpu" for leaf in leaves), f"{func}: no numbers"
    packet = func._overloadpacket
    refuse(func, args, kwargs, leaves, over_there, to_there)
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if packet in MOVES and "non_blocking" in kwargs:
        kwargs = {**kwargs, "non_blocking": False}
    if packet is torch.ops.aten._conj:  # lazily, as a mark on the tensor, it would get lost
        return Far(torch.conj_physical(near(args[0])))
    found = func(*tree_map(near, args), **tree_map(near, kwargs))
    if packet is torch.ops.aten.copy_ and not isinstance(args[0], Far):
        return args[0]
    if not to_there:
        return found
    return return_and_correct_aliasing(func, args, kwargs, tree_map(far, found))


def refuse(func, args, kwargs, leaves, over_there, to_there):
    """What a GPU refuses."""
    packet, name = func._overloadpacket, str(func).removeprefix("aten.").removesuffix(".default")
    sums = name.partition(".")[0] in ("cumsum", "cumsum_", "cumprod") and args[0].is_floating_point()
    weighed = name == "bincount" and len(args) > 1 and args[1] is not None
    if name in UNSTABLE or sums or weighed:
        raise RuntimeError(f"{name} does not have a deterministic implementation")
    if to_there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{packet}: Expected a 'cuda' device type for generator but found 'cpu'")
    if over_there and packet not in MOVES:
        looked_at = tree_leaves((args[0], kwargs)) if packet in BY_INDEX else leaves
        alone = [leaf for leaf in looked_at if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Far)]
        joined = packet in (torch.ops.aten.cat, torch.ops.aten.stack)  # these take no numbers from the CPU either
        if any(joined or leaf.dim() for leaf in alone):
            raise RuntimeError(f"{packet}: Expected all tensors to be on the same device")
