"""What kernels are called on GPUs, and what their times add up to."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.throughput.kernels import Kernel, category, read_kernels, summary, union

NAMES = {
    "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT": "GEMM",
    "sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x32": "GEMM",
    "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x128>": "GEMM",
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, cutlass::bfloat16_t>>": "attention",
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3": "attention",
    # As flash-attn-4 4.0.0b36 calls them, compiled for sm_90a.
    "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at__tensor": "attention",
    "kernel_cutlass_kernel_flash_attncuteflash_bwd_postprocessFlashAttentionBackwardPostprocess_object": "attention",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>": "norm+elementwise",
    "triton_red_fused__fused_rms_norm_0": "norm+elementwise",
    "void at::native::multi_tensor_apply_kernel<TensorListMetadata<4>, FusedAdamMathFunctor<float>>": "optimizer",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "communication",
    "Memcpy HtoD (Pinned -> Device)": "copies",
    "something nobody has seen": "other",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_a_kernel_belongs_to_one_category(name: str, expected: str) -> None:
    assert category(name) == expected


def test_shares_and_idle_time_add_up_to_the_step() -> None:
    # Two kernels overlap by 10 microseconds, and 50 of 200 are idle.
    kernels = [Kernel("gemm", 0, 100), Kernel("nccl", 90, 40), Kernel("adam", 180, 20)]
    assert union(kernels) == 150
    found = summary(kernels, seconds=200e-6, steps=1)
    assert found["shares"] == pytest.approx({"GEMM": 0.5, "communication": 0.2, "optimizer": 0.1, "idle": 0.25})
    assert sum(found["shares"].values()) - found["overlap"] == pytest.approx(1.0)
    assert [entry["name"] for entry in found["top"]] == ["gemm", "nccl", "adam"]


def test_kernels_are_read_from_a_trace(tmp_path: Path) -> None:
    events = [
        {"cat": "kernel", "name": "gemm", "ts": 1.5, "dur": 2.0},
        {"cat": "cpu_op", "name": "aten::mm", "ts": 1.0, "dur": 5.0},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD", "ts": 4.0, "dur": 1.0},
        {"name": "no category"},
    ]
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert read_kernels(path) == [Kernel("gemm", 1.5, 2.0), Kernel("Memcpy HtoD", 4.0, 1.0)]
