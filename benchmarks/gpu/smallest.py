"""`python -m benchmarks.gpu.smallest`: every op of cuda/ once on the GPU, on the smallest inputs that take every path.

For compute-sanitizer, which makes a kernel many times slower. What the ops compute is the tests' matter.
"""

from __future__ import annotations

import torch

from onevision.ops.assemble import assemble
from onevision.ops.library import load
from onevision.ops.patches import resize_patches

# height, width, rows, columns: nothing to resize, a pixel, shrunk in parts, odd sides, height first.
IMAGES = ((28, 28, 2, 2), (1, 1, 2, 2), (200, 230, 2, 2), (61, 45, 4, 4), (300, 40, 2, 2))


def main() -> None:
    """Run them, and wait for the end."""
    load()
    ops = torch.ops.onevision
    sizes = torch.tensor(IMAGES)
    count = 3 * int(sizes[:, :2].prod(1).sum())
    pixels = torch.randint(0, 256, (count,), dtype=torch.uint8, device="cuda")
    for dtype in (torch.float32, torch.bfloat16):
        resize_patches(pixels, sizes, dtype)
        for head_dim in (64, 20):  # moved 16 bytes at once, and value by value
            q, k, _ = torch.randn(19, 3, 3 * head_dim, device="cuda").to(dtype).split(head_dim, dim=-1)
            turned = ops.rotary(q, k, torch.randn(19, head_dim // 2, device="cuda"), False)
            ops.rotary_angles(q, k, *turned)
        for width in (64, 5):
            rows, features = (torch.randn(n, width, device="cuda").to(dtype) for n in (21, 9))
            slots = torch.arange(9, device="cuda") * 3 + 5
            ops.scatter_features_backward(ops.scatter_features(rows, features, slots, 8), slots, 8)
    lengths = torch.arange(70) % 40
    ids = torch.randint(0, 4, (int(lengths.sum()),), device="cuda")
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    assemble(ids, ids > 1, offsets, torch.tensor([0, 35, 70]), 1300, 0, 1, int((ids == 1).sum()))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
