"""Reading and writing one tensor at a time: Megatron checkpoints and safetensors folders of any size.

A conversion of a model needs the memory of its largest tensor, not of the model.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import pickle
import shutil
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed.checkpoint as dcp
import xxhash
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.utils import _create_file_view

from onevision.errors import DataError, InputError, OneVisionError, StorageError
from onevision.files import read_record

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


def buffer(info: TensorInfo) -> Tensor:
    """A tensor in memory of its own, which the system has back at once when the tensor is gone.

    The allocator of the C library keeps freed pieces of up to 32 MiB, which add up to what is read ahead.
    """
    if not info.nbytes:
        return torch.empty(info.shape, dtype=info.dtype)
    memory = mmap.mmap(-1, info.nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=info.dtype).view(info.shape)


class MegatronTensors:
    """The tensors of a Megatron checkpoint folder (`torch_dist`), however many ranks wrote it."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._metadata = FileSystemReader(self._folder).read_metadata()
        self.info = {
            key: TensorInfo(tuple(entry.size), entry.properties.dtype)
            for key, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def files(self, keys: Iterable[str]) -> list[str]:
        """Names of the files that hold the tensors of these keys, in the order in which they are read."""
        metadata = self._metadata
        places = (
            metadata.storage_data[MetadataIndex(key, chunk.offsets)]
            for key in keys
            for chunk in metadata.state_dict_metadata[key].chunks
        )
        return list(dict.fromkeys(place.relative_path for place in places))

    def read(self, key: str) -> Tensor:
        """The whole tensor of a key, on the CPU. A tensor stored in one piece is never in memory twice.

        Raises:
            DataError: what the file holds is no tensor, or another one.
        """
        entry, info = self._metadata.state_dict_metadata[key], self.info[key]
        if len(entry.chunks) == 1:
            return self._read_chunk(key, entry.chunks[0])
        whole = torch.empty(info.shape, dtype=info.dtype)
        for chunk in entry.chunks:
            part = whole
            for axis, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                part = part.narrow(axis, offset, size)
            part.copy_(self._read_chunk(key, chunk))
        return whole

    def _read_chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        place = self._metadata.storage_data[MetadataIndex(key, chunk.offsets)]
        path = self._folder / place.relative_path
        try:
            with path.open("rb") as file:
                # Nothing but tensors is unpickled, so the file need not have been compared with its digest before.
                found = torch.load(_create_file_view(file, place.offset, place.length), weights_only=True)
        except (RuntimeError, ValueError, EOFError, LookupError, pickle.UnpicklingError) as error:
            raise DataError(f"{path} is damaged: {key} cannot be read ({type(error).__name__})") from None
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (chunk.sizes, self.info[key].dtype):
            raise DataError(f"{path} is damaged: it does not hold {key}")
        return found


class _OneAtATime(DefaultSavePlanner):
    """Asks for a tensor when its turn to be written has come; what it plans with are tensors without data."""

    def __init__(self, read: Callable[[str], Tensor]) -> None:
        super().__init__(flatten_state_dict=False)
        self._read = read

    def lookup_object(self, index: MetadataIndex) -> Any:
        value = super().lookup_object(index)
        return self._read(index.fqn) if isinstance(value, Tensor) else value


def begin_write_back(file: IO[bytes]) -> None:
    """Have the system begin to write to the disk what was written to a file, so that little is left to wait for when it
    is synced. Clean pages of it leave the cache."""
    file.flush()
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class _Digested:
    """A file that is written from its begin to its end, and the digest of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.state = xxhash.xxh3_128()
        self.tell, self.flush = file.tell, file.flush

    def write(self, data: Any) -> int:
        self.state.update(data)
        return self._file.write(data)

    def close(self) -> None:
        if not self._file.closed:
            begin_write_back(self._file)
            self._file.close()


class _DigestedFiles(FileSystem):
    """The file system of a checkpoint's writer that keeps the digest of every file, by name."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as file:
            stream = _Digested(file)
            yield stream
        self.digests[Path(path).name] = stream.state.hexdigest()


@contextmanager
def _without_checksums() -> Iterator[None]:
    """Have PyTorch leave the checksums of its zip files out: they take as long as the writing, nothing looks at them,
    and the digest of the file covers more."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def write_megatron(folder: Path, info: Mapping[str, TensorInfo], read: Callable[[str], Tensor]) -> dict[str, str]:
    """Write a Megatron checkpoint of the model's tensors into an empty folder; `read(key)` gives each in its turn.

    Returns the digests of the tensors' files, by name.

    Raises:
        OSError: the disk is full. What `read` raises comes through.
    """
    state: dict[str, Any] = {
        key: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for key, entry in info.items()
    }
    # One file a tensor: the writer keeps what it has written to a file in memory until the file is complete.
    writer = FileSystemWriter(folder, single_file_per_rank=False, sync_files=False)
    writer.fs = files = _DigestedFiles()
    try:
        with _without_checksums(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # so it is to be: no_dist
            dcp.save(state, storage_writer=writer, planner=_OneAtATime(read), no_dist=True)
    except CheckpointException as failed:
        error, _ = failed.failures[0]
        # What the system said stands behind what the serializer made of it.
        while not isinstance(error, (OSError, OneVisionError)) and error.__context__ is not None:
            error = error.__context__
        raise error from None
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    return {name: digest for name, digest in files.digests.items() if name.endswith(".distcp")}


def _files_of(index: Path) -> list[str]:
    """Names of the files that an index of weights names.

    Raises:
        InputError: it does not say which file has which tensor.
    """
    files = read_record(index, weight_map=dict)["weight_map"].values()
    if not files or not all(isinstance(name, str) and name == Path(name).name for name in files):
        raise InputError(f"{index} was altered: its 'weight_map' does not name a file of the folder for each tensor")
    return sorted(set(files))


class SafetensorsFolder:
    """The tensors of a Hugging Face model directory: one `model.safetensors`, or shards with an index.

    Raises:
        InputError: no weights in the folder, or a shard is missing.
        DataError: a file is not safetensors or is truncated.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info: dict[str, TensorInfo] = {}
        self.files: list[Path] = []
        self._places: dict[str, tuple[Path, int]] = {}  # file, and first byte in it
        index = self.folder / INDEX_FILE
        if index.exists():
            names = _files_of(index)
        elif (self.folder / SINGLE_FILE).exists():
            names = [SINGLE_FILE]
        else:
            raise InputError(f"{self.folder} has neither {INDEX_FILE} nor {SINGLE_FILE}: it is not a model directory")
        for name in names:
            self._open(self.folder / name)

    def _open(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path} does not exist, but {INDEX_FILE} names it: the download is not complete")
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a dictionary)
                    entry = file.get_slice(name)
                    kind = entry.get_dtype()
                    if kind not in DTYPE_OF:
                        raise InputError(f"{path}: tensor {name} is {kind}, not one of {', '.join(DTYPE_OF)}")
                    self.info[name] = TensorInfo(tuple(entry.get_shape()), DTYPE_OF[kind])
        except SafetensorError as error:
            raise DataError(f"{path} is not a complete safetensors file: {error}") from None
        # The library, which has checked the file by now, maps it into memory; it does not say where a tensor lies.
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                self._places[name] = path, 8 + length + entry["data_offsets"][0]
        self.files.append(path)

    def read(self, name: str, place: Tensor | None = None) -> Tensor:
        """One tensor, on the CPU; with `place`, a contiguous tensor of its size and dtype, read into that.

        Raises:
            DataError: the file was shortened since it was opened.
        """
        path, begin = self._places[name]
        tensor = buffer(self.info[name]) if place is None else place
        content = tensor.view(-1).view(torch.uint8).numpy()
        with path.open("rb", buffering=0) as file:
            file.seek(begin)
            found = 0
            while found < len(content) and (count := file.readinto(content[found:].data)):
                found += count
        if found < len(content):
            raise DataError(f"{path} ends within tensor {name}: it was changed while it was read")
        return tensor


def write_safetensors(path: Path, info: Mapping[str, TensorInfo], tensors: Iterable[Tensor]) -> None:
    """Write one safetensors file whose tensors, named and described by `info`, come one after the other.

    The format (github.com/huggingface/safetensors, "Format"): the header's length as 8 bytes, the header as JSON
    with dtype, shape and byte range of each tensor, padded with spaces to 8 bytes, then the bytes of the tensors.
    The library itself writes only what is in memory all at once.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, entry in info.items():
        begin, end = end, end + entry.nbytes
        header[name] = {"dtype": DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, entry), tensor in zip(info.items(), tensors, strict=True):
            assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype), name
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            begin_write_back(file)
        file.flush()
        os.fsync(file.fileno())


def shards_of(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Consecutive numbers of `sizes` (bytes), cut so that no part is above `limit` unless it is a single one."""
    shards: list[list[int]] = []
    total = 0
    for number, size in enumerate(sizes):
        if not shards or total + size > limit:
            shards.append([])
            total = 0
        shards[-1].append(number)
        total += size
    return shards


def check_shapes(where: Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that are missing or have another shape.

    Raises:
        InputError: naming the first such tensor, what was found and what was expected, and how many more there are.
    """
    problems = []
    for name, shape in expected.items():
        if name not in found:
            problems.append(f"tensor {name} {list(shape)} is missing")
        elif found[name].shape != shape:
            problems.append(f"tensor {name} has shape {list(found[name].shape)} instead of {list(shape)}")
    if problems:
        more = f" (and {len(problems) - 1} more of {len(expected)})" if problems[1:] else ""
        raise InputError(f"{where} does not fit the preset: {problems[0]}{more}")


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what cannot end.

    Raises:
        StorageError: fewer than `needed` bytes are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: make room and run again"
        )
