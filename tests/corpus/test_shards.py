from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from onevision.corpus.shards import ShardWriter


@given(samples=st.lists(st.lists(st.binary(max_size=1500), min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=30)
def test_offsets_point_at_the_data(tmp_path_factory: pytest.TempPathFactory, samples: list[list[bytes]]) -> None:
    path = tmp_path_factory.mktemp("shards") / "shard-000007.tar"
    places = []
    with ShardWriter(path, 7) as shard:
        for blobs in samples:
            members = {"json": blobs[0], **{f"{k}.png": blob for k, blob in enumerate(blobs[1:])}}
            places += [(offset, members[name]) for name, offset in shard.add(members).items()]
        assert not path.exists()
    for offset, data in places:
        assert path.read_bytes()[offset : offset + len(data)] == data
    with tarfile.open(path) as tar:
        found = {(member.offset_data, member.size) for member in tar}
        assert all(member.mtime == 0 and member.uname == member.gname == "onevision" for member in tar)
    assert {(offset, len(data)) for offset, data in places} == found


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    urls = [str(tmp_path / f"shard-{k}.tar") for k in range(2)]
    for k, url in enumerate(urls):
        with ShardWriter(Path(url), k) as shard:
            for number in (2 * k, 2 * k + 1):
                shard.add({"json": b"{}", "0.png": bytes([number]) * 10, "1.jpg": b"second"})
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    keys = ["000000-000000", "000000-000001", "000001-000000", "000001-000001"]
    assert [sample["__key__"] for sample in samples] == keys
    assert [sample["0.png"] for sample in samples] == [bytes([number]) * 10 for number in range(4)]
    assert samples[0]["1.jpg"] == b"second"


def test_a_broken_off_shard_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "shard.tar", 0) as shard:
        shard.add({"json": b"{}"})
        raise KeyboardInterrupt
    assert not (tmp_path / "shard.tar").exists()
