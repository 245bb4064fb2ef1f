"""PackLoader: the batches of a step as a pure function of (seed, step, data-parallel rank and size).

So there is no loader state: to resume is to begin at another step, and on another number of ranks a step
still reads the same packs.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from onevision.corpus.reader import CorpusReader
from onevision.data.batch import PackedBatch, Sample, assemble
from onevision.data.decode import image_decoder
from onevision.data.image import MERGE, PATCH_VALUES, patch_grid
from onevision.data.schedule import deal, pack_ids
from onevision.data.template import encode
from onevision.data.tokenizer import Tokenizer
from onevision.errors import DataError, InputError
from onevision.recipe import DataRecipe

if TYPE_CHECKING:  # packing stands above data
    from onevision.packing.index import PackIndex

# What a patch costs, in units of a squared sample length; it only decides how packs are dealt to ranks.
# Forward FLOPs of the 8B preset: a patch passes the vision tower and a quarter of the adapter,
# 2 * (303e6 + 34e6 / 4) = 623e6; a squared length costs 2 * 4096 in each of 36 layers (causal: half of
# 4 * 4096), 295e3.
PATCH_COST = 2_000

log = logging.getLogger(__name__)


class PackLoader:
    """Reads the packs of this rank; `iterate` decodes ahead in `data.workers` threads (the decoder, NumPy and
    the tokenizer work without the interpreter's lock)."""

    def __init__(
        self,
        corpus: CorpusReader,
        packs: PackIndex,
        tokenizer: Tokenizer,
        data: DataRecipe,
        *,
        seed: int,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int = 0,
        dp_size: int = 1,
    ) -> None:
        """Check that the parts belong together.

        Raises:
            InputError: the packs were made for another corpus, tokenizer or recipe, or sizes do not divide.
        """
        packs.check_against(corpus.index, data, tokenizer)
        if not 0 <= dp_rank < dp_size:
            raise InputError(f"data-parallel rank {dp_rank} is not one of {dp_size}")
        if global_batch_size % (micro_batch_size * dp_size):
            raise InputError(
                f"train.global_batch_size={global_batch_size} is not a multiple of train.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks"
            )
        self.corpus, self.packs, self.tokenizer, self.data = corpus, packs, tokenizer, data
        self.seed, self.global_batch_size, self.micro_batch_size = seed, global_batch_size, micro_batch_size
        self.dp_rank, self.dp_size = dp_rank, dp_size
        self.decoder = image_decoder(data.decoder)
        self._noted: set[str] = set()

    def batches(self, step: int) -> list[PackedBatch]:
        """The micro-batches of this rank in a step (steps count from 0).

        Raises:
            DataError: a shard was damaged after the corpus was made.
        """
        ids = pack_ids(step, self.packs.packs, self.global_batch_size, self.seed)
        costs = self.packs.attention_cost[ids] + PATCH_COST * self.packs.patches[ids].astype(np.int64)
        mine = ids[deal(costs, self.dp_size)[self.dp_rank]].reshape(-1, self.micro_batch_size)
        return [self._batch(micro) for micro in mine.tolist()]

    def iterate(self, first_step: int, last_step: int) -> Iterator[list[PackedBatch]]:
        """The batches of steps first_step to last_step - 1; a sample that had to be skipped is logged once.

        Raises:
            DataError: as `batches`.
        """
        for batches in self._read(range(first_step, last_step)):
            for note in (note for batch in batches for note in batch.notes if note not in self._noted):
                self._noted.add(note)
                log.warning(note)
            yield batches

    def _read(self, steps: range) -> Iterator[list[PackedBatch]]:
        if not self.data.workers:
            yield from map(self.batches, steps)
            return
        ahead: deque[Future[list[PackedBatch]]] = deque()
        with ThreadPoolExecutor(self.data.workers, thread_name_prefix="loader") as pool:
            try:
                for step in steps:
                    ahead.append(pool.submit(self.batches, step))
                    if len(ahead) > self.data.workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _batch(self, packs: list[int]) -> PackedBatch:
        samples = [[self._sample(row) for row in self.packs.samples_of(pack)] for pack in packs]
        return assemble(samples, self.data.sequence_length, self.tokenizer)

    def _sample(self, row: int) -> Sample:
        index, limits = self.corpus.index, (self.data.min_pixels, self.data.max_pixels)
        record = self.corpus.record(row)
        images = slice(index.image_start[row], index.image_start[row + 1])
        sizes = zip(index.image_width[images].tolist(), index.image_height[images].tolist(), strict=True)
        grids = [patch_grid(width, height, *limits) for width, height in sizes]
        counts = [rows * columns for rows, columns in grids]
        encoded = encode(record, self.tokenizer, [count // MERGE**2 for count in counts])
        length = int(index.text_tokens[row]) + int(index.vision_tokens[row])
        if len(encoded.ids) != length:
            raise DataError(
                f"{index.path}: sample {record.id} has {len(encoded.ids)} tokens, the index says {length}: "
                "run `make corpus` again"
            )
        target, patches, skipped = encoded.target, np.zeros((sum(counts), PATCH_VALUES), np.float32), ""
        errors = self.decoder.patches(record.images, grids, patches)
        if error := next(filter(None, errors), None):
            shard = self.corpus.folder / index.shards[index.shard[row]]
            skipped = f"{shard}: sample {record.id} is not learned from: {error}"
            target, patches = np.zeros_like(target), np.zeros_like(patches)
        return Sample(
            row=row,
            category=int(index.category[row]),
            ids=encoded.ids,
            target=target,
            patches=patches,
            grid_thw=np.array([(1, *grid) for grid in grids], np.int64).reshape(-1, 3),
            skipped=skipped,
        )
