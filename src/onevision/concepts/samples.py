"""The samples of a corpus as the concepts step reads them: in order, in batches, with the hashes of their images.

Threads read and hash the next batch while one is worked on; what is read does not depend on how many there are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from onevision.concepts.hashes import NOTHING, image_hash
from onevision.corpus.reader import CorpusReader, DamagedSample, Entry
from onevision.corpus.record import Record
from onevision.data.image import ImageError


@dataclass
class Sample:
    """A sample of the corpus. One that is damaged has no record, or an image in it cannot be decoded."""

    row: int
    record: Record | None
    hashes: Sequence[int]  # one an image, 0 where it cannot be decoded; none where hashes are not asked for
    damage: str = ""  # what was found; empty: none


class SampleReader:
    """Reads samples of a corpus."""

    def __init__(self, corpus: CorpusReader, batch: int, hashes: bool, keep_images: bool, threads: int) -> None:
        """
        Args:
            batch: samples that are yielded at once.
            hashes: whether to hash the images.
            keep_images: whether the records still have them afterwards.
            threads: that read ahead; 0: nothing is read ahead.
        """
        self.corpus = corpus
        self._batch, self._hashes, self._keep_images, self._threads = batch, hashes, keep_images, threads

    def batches(self, rows: range) -> Iterator[list[Sample]]:
        """The samples of some rows in their order.

        Raises:
            DataError: a shard is missing or cannot be read.
        """
        starts = range(rows.start, rows.stop, self._batch)
        batches = (self.corpus.entries(range(start, min(start + self._batch, rows.stop))) for start in starts)
        if not self._threads:
            yield from (list(map(self._read, entries)) for entries in batches)
            return
        ahead: deque[list[Future[Sample]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="samples") as pool:
            try:
                for entries in batches:
                    ahead.append([pool.submit(self._read, entry) for entry in entries])
                    if len(ahead) > 1:
                        yield [sample.result() for sample in ahead.popleft()]
                while ahead:
                    yield [sample.result() for sample in ahead.popleft()]
            finally:  # also when the step stops for a signal or an error
                pool.shutdown(wait=False, cancel_futures=True)

    def _read(self, entry: Entry) -> Sample:
        try:
            record = self.corpus.read(entry)
        except DamagedSample as error:
            return Sample(entry.row, None, [NOTHING] * len(entry.images) if self._hashes else [], error.detail)
        sample = Sample(entry.row, record if self._keep_images else replace(record, images=()), [])
        if self._hashes:
            sample.hashes = [self._hash(image, sample) for image in record.images]
        return sample

    def _hash(self, image: bytes, sample: Sample) -> int:
        try:
            return image_hash(image)
        except ImageError as error:
            sample.damage = sample.damage or str(error)
            return NOTHING
