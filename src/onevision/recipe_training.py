"""The sections of the recipe that say how a model is trained, and what their values allow. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelRecipe:
    """Which architecture, and which of its parts stay as they are."""

    preset: str = "8b"  # tiny, mini, 140m, 0.6b, 1.7b, 4b, 8b: onevision.model.presets
    freeze: list[str] = field(default_factory=list)  # of vision, adapter, language
    backend: str = "auto"  # transformer_engine, torch; auto: the first on a GPU that has it, else torch
    # torch; flash_attn_4 (a package, on Hopper in BF16: README, Training); auto: the backend's own. In training.
    attention: str = "auto"
    recompute: str = "none"  # none, full (one layer at a time), selective (recompute_modules)
    recompute_layers: int = 1  # layers a checkpointed block, with recompute=full
    # Of core_attn, mlp (of language), activation (what goes into the second product of an MLP; on a GPU).
    recompute_modules: list[str] = field(default_factory=lambda: ["core_attn"])


@dataclass(frozen=True)
class OptimizerRecipe:
    """AdamW with a linear warm-up and a cosine to `min_lr`."""

    lr: float = 1e-5
    min_lr: float = 1e-6
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-5
    clip_grad: float = 1.0
    warmup_fraction: float = 0.002  # of train.steps, rounded up
    state_dtype: str = "fp32"  # of the two moments: fp32; bf16 (needs Transformer Engine's Adam) saves 4 bytes of 12


@dataclass(frozen=True)
class TrainRecipe:
    """The loop."""

    steps: int = 100
    global_batch_size: int = 8  # packs a step over all ranks
    micro_batch_size: int = 1  # packs a forward pass
    precision: str = "bf16"  # bf16, fp32, fp8 (needs Transformer Engine and compute capability 8.9 or higher)
    fp8_recipe: str = "tensorwise"  # FP8 scales: tensorwise (by a tensor's own maximum), delayed (by past maxima)
    fp8_bf16_layers: int = 0  # first and last layers of either transformer that stay in BF16; with tensorwise
    grad_reduce_in_fp32: bool = True  # false, with bf16 or fp8: gradients summed in BF16, half their memory, less exact
    tf32: bool = False  # with precision=fp32: products in TF32, several times as fast, 10 bits of mantissa
    init_from: str = ""  # run folder or checkpoint whose weights are the start; empty: initialised from the seed
    log_interval: int = 1  # steps between rows of metrics.jsonl
    peak_tflops: float = 0.0  # of one device, for MFU; 0: the table in training/flops.py, or measured on a CPU
    threads: int = 0  # CPU threads a rank; 0: the cores of this machine over its ranks
    hang_seconds: float = 1800.0  # that set-up, reading, computing or saving a step may take, or the rank ends; 0: any
    # What follows a bad step: loss or gradient norm is not a finite number, or a spike. What is done: training/guard.py
    on_divergence: str = "stop"  # stop, skip (without its update), rewind (to the last checkpoint, leave its batch out)
    spike_factor: float = 0.0  # a spike is above so many times the median of the last spike_window good steps; 0: none
    spike_window: int = 64  # steps; until there were so many there is no spike
    max_skipped_steps: int = 20  # bad steps of a run that are skipped or left out; one more ends it
    rerun: str = "none"  # none, validate (a bad step is computed again, to find hardware that errs: training/rerun.py)
    deterministic: bool = False  # kernels and orders that give the same bits twice, for tests; slower on a GPU


@dataclass(frozen=True)
class ParallelRecipe:
    """How one copy of the model is spread over ranks; the other ranks are data-parallel. Results differ by rounding."""

    tensor: int = 1  # ranks that share the weights of every layer
    sequence: bool = False  # these ranks also share the tokens where a layer is elementwise: less memory, same traffic
    context: int = 1  # ranks that share the tokens of a pack, all along
    pipeline: int = 1  # stages, of some language layers each; the first one has the vision tower and the adapter too
    virtual_pipeline: int = 1  # parts of the model a stage has: smaller bubbles, more traffic
    # Language layers of each part, in the order in which tokens pass them: pipeline x virtual_pipeline numbers. Empty:
    # as even as it goes when the vision tower and the head are counted as the layers that they cost.
    stage_layers: list[int] = field(default_factory=list)
    # Every tensor-parallel rank has the whole vision tower and computes a part of the images, instead of a part of
    # every layer for all of them: no traffic inside the tower, its weights and optimizer state in full on each rank.
    split_vision: bool = False

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model together."""
        return self.tensor * self.context * self.pipeline


@dataclass(frozen=True)
class PerformanceRecipe:
    """When data-parallel ranks talk to each other, and how kernels are started. Results are the same, but for the order
    in which ranks are added."""

    overlap_grad_reduce: bool = False  # gradients are summed during the backward pass, bucket by bucket
    overlap_param_gather: bool = False  # new weights are gathered during the next forward pass, bucket by bucket
    bucket_size: int = 0  # parameters a bucket; 0: Megatron's choice, 40 million, or 1 million a rank if that is more
    # On a GPU with model.backend=torch: all of language but attention is started as graphs of kernels, one a layer and
    # direction. Saves the host's time where a GPU waits for Python (small models, slow cores); costs memory:
    # activations of language stay where they are between steps, and a copy of each attention's output.
    cuda_graphs: bool = False
    # With Transformer Engine in BF16 and parallel.sequence: tensor-parallel messages of language travel while products
    # beside them run. Saves most of their time; costs 12 buffers of a pack's hidden states, and some of the
    # multiprocessors, which send.
    tp_comm_overlap: bool = False


@dataclass(frozen=True)
class ProfileRecipe:
    """Steps that are watched; they take longer, and no result changes. What it leaves: training/profiling.py."""

    first_step: int = 0  # the first one, counted from 1; 0: none
    steps: int = 2
    trace: bool = True  # runs/NAME/profile/trace-rankR.json.gz
    memory: bool = False  # runs/NAME/profile/memory-rankR.pickle, of a GPU


TRAINING_CHOICES: dict[str, tuple[str, ...]] = {
    "model.preset": ("tiny", "mini", "140m", "0.6b", "1.7b", "4b", "8b"),
    "model.backend": ("auto", "transformer_engine", "torch"),
    "model.attention": ("auto", "torch", "flash_attn_4"),
    "model.recompute": ("none", "full", "selective"),
    "optimizer.state_dtype": ("fp32", "bf16"),
    "train.precision": ("bf16", "fp32", "fp8"),
    # MXFP8 needs Blackwell. Blocks of 128 x 128 ("blockwise") run on Hopper, but only where all sizes divide by 128.
    "train.fp8_recipe": ("tensorwise", "delayed"),
    "train.on_divergence": ("stop", "skip", "rewind"),
    "train.rerun": ("none", "validate"),
}
# Norms alone cannot be: Megatron-core needs Transformer Engine for it, whose norms are one with the layers after them.
RECOMPUTE_MODULES = ("core_attn", "mlp", "activation")
# What a reader of Megatron's manual may look for, and why it is not here.
NOT_OFFERED = {
    "performance.use_distributed_optimizer": "the distributed optimizer is always on",
}
FP8_ROWS = 16  # what the rows and columns of every FP8 product must be a multiple of


def precision_problems(
    model: ModelRecipe, train: TrainRecipe, optimizer: OptimizerRecipe, sequence_length: int
) -> list[str]:
    """Values of precision, optimizer, backend and recomputation that exclude each other, each with what to change."""
    problems = [
        f"model.recompute_modules: {name!r} is not one of {', '.join(RECOMPUTE_MODULES)}"
        for name in model.recompute_modules
        if name not in RECOMPUTE_MODULES
    ]
    if model.recompute == "selective" and not model.recompute_modules:
        problems.append(f"model.recompute_modules is empty: name some of {', '.join(RECOMPUTE_MODULES)}")
    if model.backend == "torch" and optimizer.state_dtype != "fp32":
        problems.append(
            f"optimizer.state_dtype={optimizer.state_dtype} needs Transformer Engine's Adam and model.backend=torch: "
            "use optimizer.state_dtype=fp32"
        )
    if train.precision == "fp32" and model.attention == "flash_attn_4":
        problems.append(
            "model.attention=flash_attn_4 computes in BF16: with train.precision=fp32 use model.attention=auto"
        )
    if train.precision == "fp32" and not train.grad_reduce_in_fp32:
        problems.append("train.grad_reduce_in_fp32=false is for BF16 weights: with train.precision=fp32 leave it true")
    if train.precision == "fp32" and optimizer.state_dtype != "fp32":
        problems.append("optimizer.state_dtype=bf16 is for BF16 weights: with train.precision=fp32 use fp32")
    if optimizer.eps == 0:
        problems.append("optimizer.eps=0 divides by 0 at tokens that no sample has had yet: set it above 0, as 1e-8")
    if train.tf32 and train.precision != "fp32":
        problems.append(f"train.tf32=true is for train.precision=fp32 (is {train.precision}): leave it false")
    if 0 < train.spike_factor <= 1:
        problems.append(f"train.spike_factor={train.spike_factor} would call every step bad: set it above 1, or to 0")
    if train.precision == "fp8":
        return problems + _fp8_problems(model, train, sequence_length)
    if train.fp8_bf16_layers:
        problems.append(f"train.fp8_bf16_layers={train.fp8_bf16_layers} is for train.precision=fp8: set it to 0")
    return problems


def performance_problems(
    model: ModelRecipe, train: TrainRecipe, parallel: ParallelRecipe, performance: PerformanceRecipe
) -> list[str]:
    """What settings of `performance` need and cannot be combined with, each with what to change."""
    problems = []
    if performance.overlap_param_gather and not performance.overlap_grad_reduce:
        problems.append(
            "performance.overlap_param_gather=true needs performance.overlap_grad_reduce=true: without it there is one "
            "bucket, and nothing to overlap"
        )
    if performance.tp_comm_overlap:
        needed = {
            "parallel.tensor above 1": parallel.tensor > 1,
            "parallel.sequence=true": parallel.sequence,
            "train.precision=bf16": train.precision == "bf16",
            "model.backend=transformer_engine": model.backend != "torch",
        }
        problems += [
            f"performance.tp_comm_overlap=true needs {setting}: set it, or performance.tp_comm_overlap=false"
            for setting, given in needed.items()
            if not given
        ]
    return problems + (_graph_problems(model, parallel, performance) if performance.cuda_graphs else [])


def _graph_problems(model: ModelRecipe, parallel: ParallelRecipe, performance: PerformanceRecipe) -> list[str]:
    """Of `performance.cuda_graphs`, where it is true."""
    found = []
    if parallel.tensor > 1:
        found.append((f"parallel.tensor={parallel.tensor}: ranks talk inside a layer", "parallel.tensor=1"))
    if parallel.pipeline > 1:
        reason = "a graph has the activations of one micro-batch"
        found.append((f"parallel.pipeline={parallel.pipeline}: {reason}", "parallel.pipeline=1"))
    if performance.overlap_param_gather:
        key, reason = "performance.overlap_param_gather", "a graph needs all weights of its layers when it starts"
        found.append((f"{key}=true: {reason}", f"{key}=false"))
    if model.recompute == "full" or (model.recompute == "selective" and "mlp" in model.recompute_modules):
        reason = "Megatron recomputes layers and MLPs in a way that no graph can record"
        remedy = "model.recompute=none, or selective with model.recompute_modules=[activation]"
        found.append((f"model.recompute={model.recompute}: {reason}", remedy))
    if model.backend == "transformer_engine":
        reason = "its layers are not cut at attention"
        found.append((f"model.backend={model.backend}: {reason}", "model.backend=torch"))
    return [
        f"performance.cuda_graphs=true and {what}: use {remedy}, or performance.cuda_graphs=false"
        for what, remedy in found
    ]


def _fp8_problems(model: ModelRecipe, train: TrainRecipe, sequence_length: int) -> list[str]:
    problems = []
    if model.backend == "torch":
        problems.append(
            "train.precision=fp8 needs Transformer Engine and model.backend=torch: use train.precision=bf16, or "
            "model.backend=transformer_engine"
        )
    rows = sequence_length * train.micro_batch_size
    if rows % FP8_ROWS:
        problems.append(
            f"train.precision=fp8: data.sequence_length={sequence_length} x train.micro_batch_size="
            f"{train.micro_batch_size} is not a multiple of {FP8_ROWS}: change one, and pack again if it is the length"
        )
    if train.fp8_recipe == "delayed" and train.fp8_bf16_layers:
        problems.append(
            f"train.fp8_bf16_layers={train.fp8_bf16_layers}: delayed scaling has all layers in FP8: set it to 0, or "
            "use train.fp8_recipe=tensorwise"
        )
    if train.fp8_recipe == "delayed" and train.rerun != "none":
        problems.append(
            f"train.rerun={train.rerun}: delayed scaling changes its scales in every pass, so that a step cannot be "
            "computed again as it was: use train.fp8_recipe=tensorwise, or train.rerun=none"
        )
    return problems
