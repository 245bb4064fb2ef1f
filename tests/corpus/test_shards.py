from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.corpus.shards import ShardWriter


@given(samples=st.lists(st.lists(st.binary(max_size=1500), min_size=1, max_size=12), min_size=1, max_size=7))
@settings(max_examples=30, deadline=None)
def test_offsets_point_at_the_data(tmp_path_factory: pytest.TempPathFactory, samples: list[list[bytes]]) -> None:
    folder = tmp_path_factory.mktemp("shards")
    places = []
    with ShardWriter(folder, shard_samples=3) as shards:
        for blobs in samples:
            members = {"json": blobs[0], **{f"{k}.png": blob for k, blob in enumerate(blobs[1:])}}
            for name, offset in shards.add(members).items():
                places.append((shards.names[-1], offset, members[name]))
    assert len(shards.names) == -(-len(samples) // 3)
    assert shards.sizes == [(folder / name).stat().st_size for name in shards.names]
    for name, offset, data in places:
        assert (folder / name).read_bytes()[offset : offset + len(data)] == data
    with tarfile.open(folder / shards.names[0]) as tar:
        found = {(member.name, member.offset_data, member.size) for member in tar}
        assert all(member.mtime == 0 and member.uname == member.gname == "onevision" for member in tar)
    first = [(offset, len(data)) for name, offset, data in places if name == shards.names[0]]
    assert {(offset, size) for _, offset, size in found} == set(first)


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, shard_samples=2) as shards:
        for number in range(4):
            shards.add({"json": b"{}", "0.png": bytes([number]) * 10, "1.jpg": b"second"})
    urls = [str(tmp_path / name) for name in shards.names]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(4)]
    assert [sample["0.png"] for sample in samples] == [bytes([number]) * 10 for number in range(4)]
    assert samples[0]["1.jpg"] == b"second"
