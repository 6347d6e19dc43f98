"""Which weights a checkpoint folder stores: names, dtypes and shapes, without reading their values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, cast
from zipfile import is_zipfile

from slimcore.config import check_fetched, is_pointer, read_json
from slimcore.errors import CheckpointError, told_as

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# In the order of transformers: a file of all weights, and the index of several.
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# As torch calls what safetensors writes; others are not for weights to be pruned.
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """What a file says of one of its tensors."""

    name: str
    dtype: str  # as torch calls it
    shape: tuple[int, ...]
    file: Path

    @property
    def is_float(self) -> bool:
        """Whether its values are stored as what they are, in 16 bits or more."""
        return self.dtype in FLOATS.values()

    def read(self) -> Tensor:
        """Its values. Raises CheckpointError."""
        import torch
        from safetensors import safe_open

        with told_as(CheckpointError, f"cannot read {self.name} from {self.file}"):
            if self.file.suffix == ".bin":
                table = torch.load(self.file, map_location="cpu", weights_only=True, mmap=is_zipfile(self.file))
                return cast("Tensor", table[self.name])
            with safe_open(self.file, framework="pt") as opened:
                return cast("Tensor", opened.get_tensor(self.name))


Stored = Mapping[str, StoredTensor]


def stored_weights(folder: Path) -> Stored:
    """The tensors that transformers would load from `folder`, by name. Raises CheckpointError."""
    index, files = weight_files(folder)
    found: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{folder} is incomplete: it has no {file.name}")
        check_fetched(file)
        for tensor in _pickled(file) if file.suffix == ".bin" else _header(file):
            if tensor.name in found:
                raise CheckpointError(f"{tensor.name} is both in {found[tensor.name].file} and in {file}")
            found[tensor.name] = tensor
    for name, file in index.items():
        if name not in found or found[name].file != file:
            raise CheckpointError(f"{folder} has an index of other weights: {name} is not in {file.name}, as it says")
    return found


def has_weights(folder: Path) -> bool:
    """Whether all files of weights are in `folder`; a config alone can be counted, too."""
    if not any((folder / name).is_file() for name in (*SAFETENSORS, *PICKLES)):
        return False
    return all(file.is_file() and not is_pointer(file) for file in weight_files(folder)[1])


def weight_files(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """What the index in `folder` says, where there is one, and the files that transformers would load.

    Raises CheckpointError where there are none, or two sets of them.
    """
    for whole, index in (SAFETENSORS, PICKLES):
        there = [name for name in (whole, index) if (folder / name).is_file()]
        if len(there) > 1:
            raise CheckpointError(
                f"{folder} has two sets of weights, {whole} and the files of {index}: move the wrong one away"
            )
        if there == [whole]:
            return {}, [folder / whole]
        if there == [index]:
            where = _read_index(folder / index)
            return where, sorted(set(where.values()))
    raise CheckpointError(f"{folder} is incomplete: it has no {SAFETENSORS[0]}, and neither {PICKLES[0]} nor an index")


def _read_index(path: Path) -> dict[str, Path]:
    """The file of each tensor. Raises CheckpointError."""
    entries = read_json(path).get("weight_map")
    if not isinstance(entries, dict) or not entries or not all(isinstance(file, str) for file in entries.values()):
        raise CheckpointError(f"{path} is no index: it does not say which file each weight is in")
    outside = next((file for file in entries.values() if Path(file).is_absolute() or ".." in Path(file).parts), None)
    if outside is not None:
        raise CheckpointError(f"{path} names {outside}, which is outside its folder")
    return {name: path.parent / file for name, file in entries.items()}


def _header(file: Path) -> list[StoredTensor]:
    from safetensors import safe_open

    with told_as(CheckpointError, f"{file} is damaged or half written"), safe_open(file, framework="pt") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
        return [
            StoredTensor(name, FLOATS.get(part.get_dtype(), part.get_dtype()), tuple(part.get_shape()), file)
            for name, part in parts.items()
        ]


def _pickled(file: Path) -> list[StoredTensor]:
    """The same of a file of torch's own; on the meta device no values are read, and no code is run."""
    import torch

    with told_as(CheckpointError, f"{file} is damaged or half written"):
        try:
            table = torch.load(file, map_location="meta", weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(
                f"{file} cannot be read as weights alone: it is damaged, or holds code, which is not run;"
                " look for the model in safetensors"
            ) from error
    if not isinstance(table, dict) or not all(isinstance(value, torch.Tensor) for value in table.values()):
        raise CheckpointError(f"{file} is no table of weights: load and save the model with transformers first")
    return [
        StoredTensor(name, str(value.dtype).removeprefix("torch."), tuple(value.shape), file)
        for name, value in table.items()
    ]


def stored_dtype(stored: Stored) -> torch.dtype | None:
    """The dtype that most values of weights are stored in; None where none is stored as what it is."""
    import torch

    values: Counter[str] = Counter()
    for tensor in stored.values():
        if tensor.is_float:
            values[tensor.dtype] += prod(tensor.shape)
    found: torch.dtype | None = getattr(torch, values.most_common(1)[0][0]) if values else None
    return found
