"""The five kinds of index: damaged bytes are never read; crafted content is refused in one line, or can be used. What
they hold is not read from elsewhere."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import strategies as st

from onevision.concepts.balance.build import build_balance
from onevision.concepts.balance.index import BalanceIndex
from onevision.concepts.build import build_concepts
from onevision.concepts.index import ConceptIndex
from onevision.concepts.vocabulary import Vocabulary
from onevision.corpus.hdf5 import Column
from onevision.corpus.index import CorpusIndex
from onevision.corpus.reader import CorpusReader, DamagedSample
from onevision.data.loader import PackLoader
from onevision.data.sources import Source, Sources
from onevision.data.tokenizer import load_tokenizer
from onevision.errors import DataError, InputError
from onevision.packing.build import build_packs
from onevision.packing.index import PackIndex
from onevision.recipe import Recipe
from onevision.recipe_data import MixtureEntry
from tests.concepts.cases import make_recipe, record
from tests.fixtures import edited
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages, scalars

Fuzz = Callable[[Callable[..., None]], Counter[str]]


@dataclass(frozen=True)
class Made:
    """Folders of one of each kind, made from one another."""

    root: Path
    recipe: Recipe


def made(box: Box) -> Made:
    """A corpus in three parts with packs, a vocabulary, concepts and a balanced selection, made once."""
    if not box.shared:
        root = box.root / "good"
        recipe = make_recipe(
            root, [record(i, i % 2) for i in range(12)], match="substring", image_hashes=True, samples=6
        )
        recipe = replace(
            recipe,
            concepts=replace(recipe.concepts, index=str(root / "concepts")),
            data=replace(recipe.data, sequence_length=256),
        )
        build_concepts(recipe, root / "concepts", report=str)
        build_balance(recipe, root / "balance", report=str)
        packing = replace(recipe.data, packs=str(root / "packs"))
        build_packs(packing, root / "packs", report=str)
        build_packs(replace(packing, single_file=True), root / "packs-single", report=str)
        box.shared["made"] = Made(root, recipe)
    found: Made = box.shared["made"]
    return found


def use_corpus(folder: Path, recipe: Recipe) -> Any:
    """All records, and what the index knows."""
    reader = CorpusReader(folder)
    records = []
    for row in range(len(reader)):
        try:
            records.append(reader.record(row))
        except DamagedSample as error:
            records.append(str(error))
    reader.close()
    names = [
        (reader.index.categories[c], reader.index.sources[s])
        for c, s in zip(reader.index.category.tolist(), reader.index.source.tolist(), strict=True)
    ]
    return records, names, reader.index


def use_packs(folder: Path, recipe: Recipe) -> Any:
    """The batches of an epoch."""
    corpus, packs = Path(recipe.data.corpus), PackIndex.open(folder)
    data = replace(recipe.data, packs=str(folder), workers=0, decoder="pillow")
    sources = Sources((Source(MixtureEntry(str(corpus), str(folder)), CorpusReader(corpus), packs),))
    loader = PackLoader(sources, load_tokenizer(data.tokenizer), data, seed=1, global_batch_size=1, micro_batch_size=1)
    return packs, [[batch.tokens.tolist() for batch in loader.batches(step)] for step in range(packs.packs)]


def use_concepts(folder: Path, recipe: Recipe) -> Any:
    index = ConceptIndex.open(folder)
    return index, [index.part(k) for k in range(index.parts)]


KINDS: dict[str, Callable[[Path, Recipe], Any]] = {
    "corpus": use_corpus,
    "packs": use_packs,
    "packs-single": use_packs,
    "vocabulary": lambda folder, recipe: Vocabulary.open(folder),
    "concepts": use_concepts,
    "balance": lambda folder, recipe: (BalanceIndex.open(folder), CorpusIndex.open(folder)),
}


def content(value: Any) -> Any:
    """What was read as plain values; paths are left out."""
    if isinstance(value, Column):
        return content(np.asarray(value))
    if isinstance(value, np.ndarray):
        return value.tolist()
    if is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: content(getattr(value, field.name))
            for field in fields(value)
            if field.name not in ("path", "_sealed")
        }
    return [content(each) for each in value] if isinstance(value, (list, tuple)) else value


def place(box: Box, kind: str) -> tuple[Path, Made]:
    """A copy of one folder, beside the others; the selection names shards by the way to them."""
    good, here = made(box), box.folder()
    folder = shutil.copytree(good.root / kind, here / kind)
    if kind == "balance":
        (here / "corpus").symlink_to(good.root / "corpus")
    return folder, good


def as_before(box: Box, kind: str) -> Any:
    """What a folder of a kind holds."""
    if kind not in box.shared:
        good = made(box)
        box.shared[kind] = content(KINDS[kind](good.root / kind, good.recipe))
    return box.shared[kind]


@campaign(
    120, made, kind=st.sampled_from(sorted(KINDS)), which=st.integers(0, 5), changes=damages, cut_back=st.booleans()
)
def damaged_bytes(box: Box, kind: str, which: int, changes: list[tuple[str, float, object]], cut_back: bool) -> None:
    """Flipped bits in headers and data, other lengths: one line, or what was there before."""
    folder, good = place(box, kind)
    files = sorted(folder.glob("*.h5"))
    path = files[which % len(files)]
    before = path.read_bytes()
    after = damaged(before, changes)
    path.write_bytes(after[: len(before)].ljust(len(before), b"\0") if cut_back else after)
    found, error = box.attempt(lambda: KINDS[kind](folder, good.recipe))
    if error is None:
        assert content(found) == as_before(box, kind), f"{path.name} shows other content"
        assert path.read_bytes() == before or kind == "balance"  # the part of a corpus in it that nobody opened
    else:
        assert path.name in str(error)


NUMBERS = [-1, 0, 1, 2, 3, 7, 255, 2**15 - 1, 2**31 - 1, 2**31, 2**62, 2**63 - 1, -(2**63)]
TYPES = ["<i4", "<i8", "<i2", "u1", "<u8", "<f2", "<f8", "S3", "S0", "O", "?", ">i8", "<c8", "V4", "strings"]
crafts = st.one_of(
    st.tuples(st.just("value"), st.integers(0, 40), st.integers(0, 30), st.sampled_from(NUMBERS)),
    st.tuples(st.just("type"), st.integers(0, 40), st.sampled_from(TYPES), st.just(0)),
    st.tuples(
        st.just("shape"),
        st.integers(0, 40),
        st.sampled_from([(), (0,), (1,), (1, 1), (2, 3, 4), (3, 0), (2**40,), (-1,), (0, 5)]),
        st.just(0),
    ),
    st.tuples(
        st.just("layout"),
        st.integers(0, 40),
        st.sampled_from(["chunked", "gzip", "external", "virtual", "absent virtual", "compact"]),
        st.just(0),
    ),
    st.tuples(
        st.just("link"),
        st.integers(0, 40),
        st.sampled_from(["external", "soft", "dangling", "group", "loop"]),
        st.booleans(),
    ),
    st.tuples(
        st.just("attribute"),
        st.integers(0, 20),
        scalars | st.sampled_from([[1, 2], [], ["a"], "{", "[1]", "5"]),
        st.booleans(),
    ),
    st.tuples(
        st.just("names"),
        st.integers(0, 5),
        st.sampled_from(["../good/x.h5", "/etc/passwd", "", ".", "..", "\0", "a\nb", "é" * 300, "/dev/zero"]),
        st.just(0),
    ),
)


def craft(file: h5py.File, change: tuple[Any, ...], outside: Path) -> None:
    """Change an index as somebody could who writes HDF5."""
    kind, which, what, more = change
    names: list[str] = []
    file.visititems(lambda name, each: names.append(name) if isinstance(each, h5py.Dataset) else None)
    name = sorted(names)[which % len(names)]
    dataset = file[name]
    if kind == "value" and dataset.size and dataset.dtype.kind in "iu" and not dataset.is_virtual:
        with np.errstate(all="ignore"):
            dataset[np.unravel_index(what % dataset.size, dataset.shape)] = np.array(more % 2**64, np.uint64).astype(
                dataset.dtype
            )
    elif kind == "type":
        values, shape = None, dataset.shape
        del file[name]
        if what in ("O", "strings"):
            file.create_dataset(name, data=["x"] * (shape[0] if shape else 1), dtype=h5py.string_dtype())
        else:
            values = np.zeros(shape, "S1" if what == "S0" else what)
            file.create_dataset(name, data=values)
    elif kind == "shape":
        kind_of = dataset.dtype
        del file[name]
        file.create_dataset(name, tuple(max(0, n) for n in what), kind_of)
    elif kind == "layout":
        values = dataset[()]
        del file[name]
        if what == "external" and values.dtype.kind in "iuf":
            file.create_dataset(
                name, values.shape, values.dtype, external=[(str(outside / "secret"), 0, max(1, values.nbytes))]
            )
        elif what.endswith("virtual") and values.ndim and values.dtype.kind in "iuf":
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            if len(values):
                layout[...] = h5py.VirtualSource(
                    str(outside / ("none.h5" if "absent" in what else "other.h5")), "x", values.shape
                )
            file.create_virtual_dataset(name, layout)
        elif values.ndim and values.size:
            file.create_dataset(name, data=values, chunks=True, compression="gzip" if what == "gzip" else None)
        else:
            file[name] = values
    elif kind == "link":
        place = name.partition("/")[0] if more else name
        del file[place]
        links = {
            "external": h5py.ExternalLink(str(outside / "other.h5"), "/x"),
            "soft": h5py.SoftLink("/parts"),
            "dangling": h5py.SoftLink("/none"),
            "loop": h5py.SoftLink(f"/{place}"),
        }
        if what == "group":
            file.create_group(place)
        else:
            file[place] = links[what]
    elif kind == "attribute":
        attribute = sorted(file.attrs)[which % len(file.attrs)]
        del file.attrs[attribute]
        if more:
            file.attrs[attribute] = "" if what is None else what
    elif kind == "names":
        lists = [
            each
            for each in ("parts/name", "parts/column", "parts/fingerprint", "tables/shard", "tables/category")
            if each in file
        ]
        if lists:
            strings = file[lists[which % len(lists)]]
            if strings.size:
                strings[0] = what.replace("\0", "")


@campaign(90, made, kind=st.sampled_from(sorted(KINDS)), changes=st.lists(crafts, min_size=1, max_size=2))
def crafted(box: Box, kind: str, changes: list[tuple[Any, ...]]) -> None:
    """An index that was written so, with a right digest: other types, shapes, numbers, links, attributes, places."""
    folder, good = place(box, kind)
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(bytes(range(256)) * 40)
    with h5py.File(outside / "other.h5", "w") as file:
        file["x"] = np.full(64, 77)
    master = next(path for path in sorted(folder.glob("*.h5")) if "-0" not in path.name)
    try:
        with edited(master) as file:
            for change in changes:
                craft(file, change, outside)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, AttributeError, MemoryError):
        box.notes["that HDF5 itself does not write"] += 1  # the first change may be there
        shutil.rmtree(folder)
        shutil.copytree(good.root / kind, folder)
    box.attempt(lambda: KINDS[kind](folder, good.recipe))


@pytest.mark.parametrize("function", [damaged_bytes, crafted], ids=lambda f: f.__name__)
def test_hdf5(fuzz: Fuzz, function: Callable[..., None]) -> None:
    counts = fuzz(function)
    assert counts["DataError"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_no_single_bit_goes_unseen(kind: str, tmp_path: Path) -> None:
    """Bits all over every file of an index, heads and data, one at a time."""
    box = Box(tmp_path)
    folder, good = place(box, kind)
    use = partial(KINDS[kind], folder, good.recipe)
    use()
    for path in sorted(folder.glob("*.h5")):
        if kind == "balance" and path.name.startswith("part-"):
            continue
        before = path.read_bytes()
        for bit in range(len(before) % 97, 8 * len(before), 97 * 211):
            with path.open("r+b") as file:
                file.seek(bit // 8)
                file.write(bytes([before[bit // 8] ^ 1 << bit % 8]))
            with pytest.raises((DataError, InputError)):
                use()
            path.write_bytes(before)
    use()
