"""Settings of precision and speed that exclude each other are refused in one line."""

from __future__ import annotations

import pytest

from onevision.errors import InputError
from onevision.recipe import recipe_from


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"train": {"precision": "fp8"}, "model": {"backend": "torch"}}, "fp8 needs Transformer Engine"),
        ({"train": {"precision": "fp8"}, "data": {"sequence_length": 8200}}, "is not a multiple of 16"),
        ({"train": {"precision": "fp8", "fp8_recipe": "delayed", "fp8_bf16_layers": 1}}, "delayed scaling has all"),
        ({"train": {"fp8_bf16_layers": 1}}, "is for train.precision=fp8"),
        ({"train": {"fp8_recipe": "mxfp8"}}, "is not one of tensorwise, delayed"),
        (
            {"train": {"precision": "fp32"}, "model": {"attention": "flash_attn_4"}},
            "model.attention=flash_attn_4 computes in BF16: with train.precision=fp32 use model.attention=auto",
        ),
        ({"train": {"tf32": True}}, "train.tf32=true is for train.precision=fp32"),
        ({"train": {"precision": "fp32", "grad_reduce_in_fp32": False}}, "is for BF16 weights"),
        ({"model": {"backend": "torch"}, "optimizer": {"state_dtype": "bf16"}}, "needs Transformer Engine's Adam"),
        ({"model": {"recompute_modules": ["layernorm"]}}, "'layernorm' is not one of core_attn, mlp"),
        ({"performance": {"overlap_param_gather": True}}, "needs performance.overlap_grad_reduce=true"),
        (
            {"performance": {"cuda_graphs": True}, "parallel": {"tensor": 2}},
            "performance.cuda_graphs=true and parallel.tensor=2: ranks talk inside a layer: use parallel.tensor=1, or",
        ),
        ({"performance": {"cuda_graphs": True}, "parallel": {"pipeline": 2}}, "the activations of one micro-batch"),
        (
            {"performance": {"cuda_graphs": True, "overlap_grad_reduce": True, "overlap_param_gather": True}},
            "performance.cuda_graphs=true and performance.overlap_param_gather=true: a graph needs all weights",
        ),
        ({"performance": {"cuda_graphs": True}, "model": {"recompute": "full"}}, "in a way that no graph can record"),
        (
            {"performance": {"cuda_graphs": True}, "model": {"backend": "transformer_engine"}},
            "are not cut at attention",
        ),
        (
            {"performance": {"tp_comm_overlap": True}},
            "performance.tp_comm_overlap=true needs parallel.tensor above 1: ",
        ),
        (
            {"performance": {"tp_comm_overlap": True}, "parallel": {"tensor": 2}},
            "tp_comm_overlap=true needs parallel.sequence=true: set it, or performance.tp_comm_overlap=false",
        ),
        ({"performance": {"tp_comm_overlap": True}, "train": {"precision": "fp8"}}, "needs train.precision=bf16: set"),
        ({"performance": {"use_distributed_optimizer": True}}, "the distributed optimizer is always on"),
        ({"train": {"spike_factor": 1.0}}, "train.spike_factor=1.0 would call every step bad: set it above 1, or to 0"),
        ({"train": {"on_divergence": "go on"}}, "train.on_divergence='go on' is not one of stop, skip, rewind"),
        ({"evaluation": {"interval": 100}}, "evaluation.interval=100 has nothing to ask: name evaluation.tasks"),
        ({"evaluation": {"tasks": ["mmstar"], "interval": 150}}, "is not a multiple of checkpoint.interval=100"),
        ({"evaluation": {"tasks": ["../x"]}}, "evaluation.tasks: '../x' is not the name of a task"),
        ({"evaluation": {"tasks": ["onevision_heldout"]}}, "asks the questions of evaluation.corpus, which is empty"),
        ({"evaluation": {"max_failed": 2.0}}, "evaluation.max_failed=2.0 is not between 0 and 1"),
    ],
)
def test_what_excludes_each_other(values: dict[str, dict[str, object]], line: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe_from(values)
    assert line in str(caught.value) and "\n" not in str(caught.value)
