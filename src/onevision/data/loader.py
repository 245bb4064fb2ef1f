"""PackLoader: the batches of a step as a pure function of (seed, step, data-parallel rank and size).

So there is no loader state: to resume is to begin at another step, and on another number of ranks a step
still reads the same packs. Threads decode ahead, not the worker processes of Grain or torch's DataLoader: image
decoders, NumPy and the system's reads work without the interpreter's lock, and a batch of some 50 MB need not be sent
from one process to another. For a GPU they also send each batch there, ahead of its turn (`onevision.data.staging`).

The micro-batches of a step are made while it is computed: however many they are, memory holds those that are ahead.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from onevision.corpus.reader import CorpusReader, DamagedSample, Entry
from onevision.data.batch import BatchLayout, Outline, PackedBatch, Room
from onevision.data.image import MERGE, patch_grid
from onevision.data.ledger import mixture_of
from onevision.data.patcher import image_patcher
from onevision.data.schedule import PATCH_COST, batches_ahead, deal
from onevision.data.sources import Sources
from onevision.data.staging import Staged, Staging
from onevision.data.template import encode
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError, InputError
from onevision.recipe import DataRecipe

RECENT = 1_000  # samples whose damaged ones are counted against data.reject_threshold
FEW = 10  # damaged samples among them that are always borne

log = logging.getLogger(__name__)
CPU = torch.device("cpu")
MicroBatch = list[tuple[int, int]]  # source and pack of each of its packs


class StepBatches:
    """The micro-batches of a step, made as they are taken; they go when the one who took them lets go of them.

    `facts` has what is told of those that were taken, in their order, `seconds` how long all but the first were waited
    for.
    """

    def __init__(self, batches: Iterator[PackedBatch], count: int) -> None:
        """The next `count` of `batches`; the first one is waited for here."""
        self.facts: list[PackedBatch] = []
        self.seconds = 0.0
        self._batches, self._count = batches, count
        self._first: PackedBatch | None = next(batches)
        self._held: list[PackedBatch] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[PackedBatch]:
        for number in range(self._count):
            if number == len(self.facts):
                yield self._taken()
            else:
                assert self._held is not None, "each is there once, unless they are held"
                yield self._held[number]

    def hold(self) -> None:
        """Keep them all, to be gone through again, or by several at a time; before any is taken."""
        if self._held is None:
            assert not self.facts, "nothing was let go of yet"
            self._held = []

    def pass_over(self) -> None:
        """Take what was not taken."""
        while len(self.facts) < self._count:
            self._taken()

    def _taken(self) -> PackedBatch:
        batch, self._first = self._first, None
        if batch is None:
            began = time.perf_counter()
            batch = next(self._batches)
            self.seconds += time.perf_counter() - began
        self.facts.append(batch.without_content())
        if self._held is not None:
            self._held.append(batch)
        return batch


class PackLoader:
    """Reads the packs of this rank; `iterate` decodes ahead in `data.workers` threads."""

    def __init__(
        self,
        sources: Sources,
        tokenizer: Tokenizer,
        data: DataRecipe,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Check that the parts belong together.

        Args:
            device: where batches are handed over (the fields of `onevision.data.batch.MOVED`).
            dtype: of the patches where that device makes them; the model's.

        Raises:
            InputError: packs were made for another corpus, tokenizer or recipe, or sizes do not divide; or the decoder
                or the ops that the recipe asks for are not there.
        """
        sources.check(data, tokenizer)
        if not 0 <= dp_rank < dp_size:
            raise InputError(f"data-parallel rank {dp_rank} is not one of {dp_size}")
        if global_batch_size % (micro_batch_size * dp_size):
            raise InputError(
                f"train.global_batch_size={global_batch_size} is not a multiple of train.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks"
            )
        self.sources, self.tokenizer, self.data = sources, tokenizer, data
        self.mixture = mixture_of(sources, seed)
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self.device = device
        self.patcher = image_patcher(data, device, dtype, micro_batch_size)
        self._staging = Staging(device)
        self._noted: set[str] = set()

    def batches(self, step: int) -> list[PackedBatch]:
        """The micro-batches of this rank in a step (steps count from 0).

        A sample that is damaged, or of which an image cannot be decoded, keeps its place and is not learned from.

        Raises:
            DataError: a shard is missing or cannot be read, or the index is not that of the shards.
        """
        return [self._staging.receive(self._staged(packs)) for packs in self._micro_batches(step)]

    def iterate(self, first_step: int, last_step: int) -> Generator[StepBatches, None, None]:
        """The batches of steps first_step to last_step - 1; a sample that had to be skipped is logged once.

        Raises:
            DataError: as `batches`, when the first batch of a step is asked for, or where a later one is taken; or too
                many samples had to be skipped: of the last 1,000 more than `data.reject_threshold`, and more than 10.
        """
        count = self.global_batch_size // (self.micro_batch_size * self.dp_size)
        batches = self._checked(range(first_step, last_step))
        try:
            for _ in range(first_step, last_step):
                step = StepBatches(batches, count)
                yield step
                step.pass_over()
        finally:
            batches.close()

    def _checked(self, steps: range) -> Generator[PackedBatch, None, None]:
        recent: deque[tuple[int, int]] = deque()  # samples and skipped ones of each batch
        for batch in self._ahead(steps):
            for note in set(batch.notes) - self._noted:
                self._noted.add(note)
                log.warning(note)
            recent.append((len(batch.sample_ids), batch.skipped))
            self._refuse_damage(recent, batch)
            yield batch
            del batch  # or it would stay until the next one is there

    def epochs(self, steps: int) -> dict[str, float]:
        """How often the first `steps` steps go through the packs of each source, by the folder of its packs."""
        folders = [source.entry.packs for source in self.sources.sources]
        return dict(zip(folders, self.mixture.epochs(steps * self.global_batch_size), strict=True))

    def _refuse_damage(self, recent: deque[tuple[int, int]], batch: PackedBatch) -> None:
        while sum(samples for samples, _ in recent) - recent[0][0] >= RECENT:
            recent.popleft()
        samples, skipped = (sum(counts) for counts in zip(*recent, strict=True))
        if skipped > max(FEW, self.data.reject_threshold * samples):
            raise DataError(
                f"{skipped} of the last {samples} samples could not be used, more than data.reject_threshold="
                f"{self.data.reject_threshold} and {FEW}; the last: {(batch.notes or ('',))[-1]}"
            )

    def _ahead(self, steps: range) -> Iterator[PackedBatch]:
        planned = (packs for step in steps for packs in self._micro_batches(step))
        if not self.data.workers:
            yield from (self._staging.receive(self._staged(packs)) for packs in planned)
            return
        most = batches_ahead(self.data, self.micro_batch_size)
        ahead: deque[Future[Staged]] = deque()
        with ThreadPoolExecutor(self.data.workers, thread_name_prefix="loader") as pool:
            try:
                for packs in planned:
                    ahead.append(pool.submit(self._staged, packs))
                    if len(ahead) > most:
                        yield self._staging.receive(ahead.popleft().result())
                while ahead:
                    yield self._staging.receive(ahead.popleft().result())
            finally:  # also when the training stops for a signal or an error
                pool.shutdown(wait=False, cancel_futures=True)

    def _micro_batches(self, step: int) -> list[MicroBatch]:
        source, pack = self.mixture.at(step * self.global_batch_size, self.global_batch_size)
        mine = deal(self.sources.costs(source, pack, PATCH_COST), self.dp_size)[self.dp_rank]
        pairs = list(zip(source[mine].tolist(), pack[mine].tolist(), strict=True))
        return [pairs[first : first + self.micro_batch_size] for first in range(0, len(pairs), self.micro_batch_size)]

    def _staged(self, packs: MicroBatch) -> Staged:
        return self._staging.send(lambda: self._batch(packs))

    def _batch(self, packs: MicroBatch) -> PackedBatch:
        entries = [self._entries(*pack) for pack in packs]
        outlines = [[self._outline(source, entry) for source, entry in pack] for pack in entries]
        for number, pack in enumerate(outlines):
            if (length := sum(sample.length for sample in pack)) > self.data.sequence_length:
                path = self.sources.sources[packs[number][0]].packs.path
                raise DataError(
                    f"{path}: pack {packs[number][1]} has {length} tokens, more than {self.data.sequence_length}: run "
                    "`make pack` again"
                )
        layout = BatchLayout(outlines, self.data.sequence_length, self.tokenizer)
        samples = [sample for pack in entries for sample in pack]
        damage: dict[int, str] = {}  # by the sample's number in the batch
        images: list[bytes] = []
        owners: list[int] = []
        for number, (source, entry) in enumerate(samples):
            outline, room = layout.samples[number], layout.rooms[number]
            try:
                images += self._read(self.sources.sources[source].corpus, entry, outline, room)
            except DamagedSample as error:
                damage[number] = error.detail
                images += [b""] * len(outline.grids)
            owners += [number] * len(outline.grids)
        sizes = [size for _, entry in samples for size in entry.sizes]
        grids = [grid for outline in layout.samples for grid in outline.grids]
        patches, errors = self.patcher.make(images, sizes, grids)
        for number, found in zip(owners, errors, strict=True):
            if found is not None:
                damage.setdefault(number, str(found))
        return layout.finish(patches, {number: self._note(*samples[number], found) for number, found in damage.items()})

    def _note(self, source: int, entry: Entry, found: str) -> str:
        corpus = self.sources.sources[source].corpus
        return f"{corpus.store.place(entry.shard)}: sample {corpus.id(entry.row)} is not learned from: {found}"

    def _entries(self, source: int, pack: int) -> list[tuple[int, Entry]]:
        own = self.sources.sources[source]
        return [(source, entry) for entry in own.corpus.entries(own.packs.samples_of(pack))]

    def _outline(self, source: int, entry: Entry) -> Outline:
        limits = (self.data.min_pixels, self.data.max_pixels)
        return Outline(
            sample_id=int(self.sources.first_row[source]) + entry.row,
            category=int(self.sources.category_numbers[source][entry.category]),
            length=entry.tokens,
            grids=tuple(patch_grid(width, height, *limits) for width, height in entry.sizes),
        )

    def _read(self, corpus: CorpusReader, entry: Entry, outline: Outline, room: Room) -> tuple[bytes, ...]:
        """Read a sample and write its tokens into their place in a batch; returns its images.

        Raises:
            DamagedSample: it is not what was written.
            DataError: the shard is missing or cannot be read, or the index has another length.
        """
        record = corpus.read(entry)
        encoded = encode(record, self.tokenizer, [rows * columns // MERGE**2 for rows, columns in outline.grids])
        if len(encoded.ids) != outline.length:
            raise DataError(
                f"{corpus.index.path}: sample {record.id} has {len(encoded.ids)} tokens, the index says "
                f"{outline.length}: run `make corpus` again"
            )
        room.ids[:], room.target[:] = encoded.ids, encoded.target
        return record.images
