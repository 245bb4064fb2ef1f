"""Small real sources in every layout that can be imported."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from onevision.corpus.formats import Rejected, list_units, read_unit
from onevision.corpus.record import Record
from onevision.recipe import DataRecipe
from tests.fixtures import image_bytes

FORMATS = ("records", "parquet", "webdataset", "llava-json")
EN = "The picture shows a red circle, a blue square and three green lines; sample {} has seven dots."
ZH = (
    "图片里有一个红色的圆和三条绿色的线。一共有七个点，这是第{}个样本。"
    "左边的柱子比右边的高，背景是浅灰色的，右下角写着“你好”，天空晴朗。"
)


def read(data: DataRecipe) -> list[Record | Rejected]:
    """All that the units of a source hold, in their order."""
    return [item for unit in list_units(data).units for item in read_unit(data, unit)]


def texts(record: Record | Rejected) -> list[tuple[str, str]]:
    """Roles and texts of a record, an image being `<>`."""
    assert isinstance(record, Record), record
    return [
        (message.role, "".join("<>" if part.type == "image" else part.text for part in message.content))
        for message in record.messages
    ]


def jpeg(i: int) -> bytes:
    """The i-th of an endless series of photographs."""
    return image_bytes(60 + 17 * (i % 9), 48 + 23 * (i % 5), seed=i, format="JPEG")


def write_table(path: Path, columns: dict[str, Any], rows_a_group: int = 4) -> None:
    """A Parquet file with many small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)


def write_parquet(root: Path) -> None:
    """Two sources of the released layout, English and Chinese, 33 rows in four files."""
    number = 0
    for folder, rows in (("coyo/EN/part00", 9), ("coyo/EN/part01", 11), ("coyo/CN/part00", 6), ("sa1b/EN/part00", 7)):
        numbers = range(number, number + rows)
        caption = ZH if "/CN/" in folder else EN
        write_table(
            root / folder / "0000.parquet",
            {
                "id": [f"{folder}-{i}" for i in numbers],
                "image": [{"bytes": jpeg(i), "path": None} for i in numbers],
                "caption": [caption.format(i) for i in numbers],
            },
        )
        number += rows


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """A tar file of these names and contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def pack(key: str, numbers: Sequence[int]) -> list[tuple[str, bytes]]:
    """A pack of the released quick-start shards."""
    fields = {
        "images": [f"{i}.jpg" for i in numbers],
        "captions": [EN.format(i) for i in numbers],
        "prompts": [f"What is in picture {i}?" for i in numbers],
    }
    files = [(f"{key}.img{k}.jpg", jpeg(i)) for k, i in enumerate(numbers)]
    return [*files, (f"{key}.json", json.dumps(fields).encode())]


def write_webdataset(root: Path) -> None:
    """A shard of three packs of 4, 1 and 11 images, one of captions, and one of conversations; 24 samples."""
    packs = [*pack("ps_0", range(4)), *pack("ps_1", [4]), *pack("ps_2", range(5, 16))]
    write_tar(root / "pretrain-000000.tar", packs)
    captions = [
        member
        for i in range(4)
        for member in ((f"{i:04d}.jpg", jpeg(i + 20)), (f"{i:04d}.txt", (ZH if i % 2 else EN).format(i).encode()))
    ]
    write_tar(root / "captions-000000.tar", captions)
    talks = []
    for i in range(4):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": EN.format(i)}]
        talks += [(f"./t{i}.jpg", jpeg(i + 30)), (f"./t{i}.json", json.dumps({"conversations": turns}).encode())]
    write_tar(root / "talks-000000.tar", talks)


def llava_rows() -> list[dict[str, Any]]:
    """Twenty rows in LLaVA's layout: no image, one, two; one to three turns."""
    rows = []
    for i in range(20):
        images = [f"pictures/{i}_{k}.jpg" for k in range(i % 3)]
        first = "<image>\n" * len(images) + f"Question {i}?"
        turns = [{"from": "human", "value": first}, {"from": "gpt", "value": f"Answer {i}."}]
        for turn in range(i % 3):
            turns += [{"from": "human", "value": f"And {turn}?"}, {"from": "gpt", "value": f"{turn} 点。"}]
        row: dict[str, Any] = {"id": f"row-{i}", "conversations": turns}
        if images:
            row["image"] = images[0] if len(images) == 1 else images
        rows.append(row)
    return rows


def write_llava(root: Path, lines: bool = False) -> None:
    """`llava_rows` as one JSON array, or as JSON lines, and their images."""
    (root / "pictures").mkdir(parents=True, exist_ok=True)
    rows = llava_rows()
    for i in range(len(rows)):
        for k in range(i % 3):
            (root / f"pictures/{i}_{k}.jpg").write_bytes(jpeg(i * 10 + k))
    if lines:
        (root / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        (root / "set.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False))
