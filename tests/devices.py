"""Two devices on a machine that has none: what computes with tensors of both fails, as it would there."""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

HERE = torch.device("cpu")


class Devices(TorchFunctionMode):
    """Inside it results lie where their operands do, and operands that lie apart are an error.

    Where a tensor lies is known by its storage, which is kept, so that no other takes its place.
    """

    def __init__(self):
        super().__init__()
        self._storages = {}  # address -> (device, storage)

    def place_(self, module, device):
        """Say that a module's weights lie on `device`, and bring what it is called with there, as accelerate does."""
        device = torch.device(device)
        for tensor in (*module.parameters(), *module.buffers()):
            self._put(tensor, device)

        def bring(_module, args, kwargs):
            return tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (args, kwargs))

        module.register_forward_pre_hook(bring, with_kwargs=True, prepend=True)

    def of(self, tensor):
        """The device that a tensor is said to lie on."""
        return self._storages.get(tensor.untyped_storage().data_ptr(), (HERE,))[0]

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call `func`; a single number may lie anywhere, and only copying takes tensors from two devices."""
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:
            return self.of(args[0])
        copies = func.__name__ in ("to", "copy_", "cpu", "__set__")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = {self.of(tensor) for tensor in tensors if tensor.ndim}
        if len(places) > 1 and not copies:
            raise RuntimeError(f"{func.__name__} is given tensors on different devices: {sorted(map(str, places))}")
        asked = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        there = [*asked, *([HERE] if func.__name__ == "cpu" else []), *(self.of(t) for t in tensors[:1]), HERE][0]
        there = there if copies or asked or not places else places.pop()
        args, kwargs = tree_map_only(torch.device, lambda _: HERE, (args, kwargs))
        return tree_map_only(torch.Tensor, lambda out: self._put(out, there), func(*args, **kwargs))

    def _put(self, tensor, device):
        if self.of(tensor) != device and tensor.untyped_storage().data_ptr() in self._storages:
            tensor = tensor.clone()  # it was given back as it was
        if device != HERE:
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = (device, storage)
        return tensor
