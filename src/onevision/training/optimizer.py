"""The distributed optimizer, its parameter groups and the learning-rate schedule, all Megatron's."""

from __future__ import annotations

import math

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from onevision.model.onevision import OneVisionModel
from onevision.recipe import OptimizerRecipe, Recipe


def data_parallel(model: OneVisionModel, config: TransformerConfig) -> DistributedDataParallel:
    """The model behind Megatron's data parallelism: gradients in FP32, sharded with the optimizer state."""
    wrapped = Float16Module(config, model) if config.bf16 else model
    # Megatron's own check for NaN would end a rank before the loop can say which samples it was (refuse_divergence).
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, check_for_nan_in_grad=False
    )
    ddp = DistributedDataParallel(config=config, ddp_config=settings, module=wrapped)
    ddp.broadcast_params()
    return ddp


def build_optimizer(ddp: DistributedDataParallel, config: TransformerConfig, recipe: Recipe) -> MegatronOptimizer:
    """AdamW over the trainable parameters; norms and biases (vectors) take no weight decay."""
    settings = recipe.optimizer
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=settings.lr,
            min_lr=settings.min_lr,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            bf16=config.bf16,
            params_dtype=config.params_dtype,
            use_distributed_optimizer=True,
        ),
        [ddp],
    )
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False):
            part.init_state_fn(part.optimizer, part.config)  # the state must exist before a first load
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    return optimizer


def build_scheduler(optimizer: MegatronOptimizer, settings: OptimizerRecipe, steps: int) -> OptimizerParamScheduler:
    """Linear warm-up over ceil(warmup_fraction * steps), then a cosine from `lr` to `min_lr`; counted in steps."""
    warmup = min(math.ceil(settings.warmup_fraction * steps), steps - 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=warmup,
        lr_decay_steps=steps,
        lr_decay_style="cosine",
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
    )


def precision_dtype(precision: str) -> torch.dtype:
    """Dtype of the parameters for `train.precision`; BF16 keeps FP32 master weights in the optimizer, and FP8 is what
    the products of a BF16 model are computed in."""
    return {"bf16": torch.bfloat16, "fp8": torch.bfloat16, "fp32": torch.float32}[precision]
