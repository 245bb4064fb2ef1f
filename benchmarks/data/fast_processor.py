"""The peer that needs torchvision: times Hugging Face's fast image processor and prints one line of JSON.

A script of its own, because torchvision must fit the torch beside it: it runs in any environment that has both and
transformers, and imports nothing of this project.

    python fast_processor.py FOLDER MIN_PIXELS MAX_PIXELS ROUNDS
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
import torchvision.io
from PIL import Image
from transformers import Qwen2VLImageProcessor


def main(folder: str, min_pixels: int, max_pixels: int, rounds: int) -> None:
    torch.set_num_threads(1)
    processor = Qwen2VLImageProcessor(min_pixels=min_pixels, max_pixels=max_pixels, temporal_patch_size=1)
    files = [str(path) for path in sorted(Path(folder).glob("*.jpg"))]

    def pillow(file: str) -> object:
        return Image.open(file)

    def torchvision_io(file: str) -> object:
        return torchvision.io.decode_jpeg(torchvision.io.read_file(file), mode=torchvision.io.ImageReadMode.RGB)

    seconds = {}
    for reader in (pillow, torchvision_io):  # whichever is faster counts
        try:
            reader(files[0])
        except RuntimeError as error:
            print(f"{reader.__name__} cannot decode here: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        times = []
        for _ in range(rounds):
            start = time.process_time()
            for file in files:
                processor(reader(file), return_tensors="pt")
            times.append(time.process_time() - start)
        seconds[reader.__name__] = min(times)
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "transformers", "pillow")}
    print(json.dumps({"seconds": seconds, "images": len(files), "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
