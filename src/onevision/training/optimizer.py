"""The distributed optimizer, its parameter groups and the learning-rate schedule, all Megatron's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import unwrap_model

from onevision.model.onevision import OneVisionModel
from onevision.model.split import sum_gradients
from onevision.recipe import OptimizerRecipe, Recipe


def data_parallel(
    model: OneVisionModel, config: TransformerConfig, recipe: Recipe, *, bucketing: bool = True
) -> DistributedDataParallel:
    """The model, or a part of it, behind Megatron's data parallelism: gradients are sharded with the optimizer state.

    Without overlap all gradients are summed after the backward pass, and all weights gathered after the update. With it
    buckets of them travel during the backward and the next forward pass, in an order that all ranks must share.
    """
    performance = recipe.performance
    wrapped = Float16Module(config, model) if config.bf16 else model
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=recipe.train.grad_reduce_in_fp32,
        overlap_grad_reduce=performance.overlap_grad_reduce,
        overlap_param_gather=performance.overlap_param_gather,
        bucket_size=performance.bucket_size or None,
        use_distributed_optimizer=True,
        # Megatron's own check for NaN would end a rank before the loop can say which samples it was.
        check_for_nan_in_grad=False,
    )
    ddp = DistributedDataParallel(config=config, ddp_config=settings, module=wrapped, disable_bucketing=not bucketing)
    ddp.broadcast_params()
    parallel = recipe.parallel
    if model.part.first and (performance.overlap_grad_reduce or parallel.context > 1 or parallel.split_vision):
        parts = (model.vision, model.adapter)
        # A rank that has no image, where others of its group have some, would have no gradients of these, and send its
        # buckets in another order; or, with the language model frozen, go through no backward pass that others wait in.
        model.always_vision = any(parameter.requires_grad for part in parts for parameter in part.parameters())
    if performance.overlap_param_gather and model.part.last:
        _gather_before_the_head(model, ddp)
    return ddp


def _gather_before_the_head(model: OneVisionModel, ddp: DistributedDataParallel) -> None:
    """The loss takes the head's weight without calling its module, for which alone Megatron would wait."""
    head = model.language.output_layer.weight
    group = ddp.param_to_bucket_group.get(head)
    if group is not None:
        model.language.decoder.register_forward_hook(lambda *_: _gather(ddp, group))


def _gather(ddp: DistributedDataParallel, group: Any) -> None:
    if ddp.remove_forward_pre_hook_handles:  # empty while the weights are gathered already
        group.finish_param_sync()


def gradient_ready(ddp: DistributedDataParallel) -> Callable[[torch.nn.Parameter], None] | None:
    """What is to be told of a parameter whose gradient is in its main_grad without having come out of autograd; None if
    nothing waits for it."""
    if not ddp.ddp_config.overlap_grad_reduce:
        return None
    return lambda parameter: ddp.param_to_bucket_group[parameter].register_grad_ready(parameter)


@contextmanager
def gathered_weights(parts: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Inside, every rank has all weights of the last update; with overlap they come with the next forward pass."""
    if not parts[0].ddp_config.overlap_param_gather:
        yield
        return
    for ddp in parts:
        ddp.disable_forward_pre_hook()
    yield
    for ddp in parts:
        ddp.enable_forward_pre_hook()


def build_optimizer(
    parts: Sequence[DistributedDataParallel], config: TransformerConfig, recipe: Recipe
) -> MegatronOptimizer:
    """AdamW over the trainable parameters; norms and biases (vectors) take no weight decay."""
    settings = recipe.optimizer
    state = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.state_dtype]
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
            overlap_param_gather=recipe.performance.overlap_param_gather,
            use_precision_aware_optimizer=settings.state_dtype != "fp32",
            exp_avg_dtype=state,
            exp_avg_sq_dtype=state,
        ),
        list(parts),
    )
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if not getattr(part, "is_stub_optimizer", False):
            part.init_state_fn(part.optimizer, part.config)  # the state must exist before a first load
    config.finalize_model_grads_func = finalize_model_grads
    if recipe.parallel.split_vision:
        whole = [parameter for ddp in parts for parameter in unwrap_model(ddp).split_parameters()]
        config.finalize_model_grads_func = partial(_finalize, whole)
    config.grad_scale_func = optimizer.scale_loss
    if recipe.performance.overlap_grad_reduce:  # only the last micro-batch of a step sends gradients
        config.no_sync_func = [ddp.no_sync for ddp in parts] if len(parts) > 1 else parts[0].no_sync
    return optimizer


def _finalize(whole: Sequence[torch.nn.Parameter], *args: Any, **kwargs: Any) -> None:
    finalize_model_grads(*args, **kwargs)
    sum_gradients(whole)


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
