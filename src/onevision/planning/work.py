"""What a pack holds, and the operations and bytes that a micro-batch of packs costs a pipeline stage.

Symbols as in training/flops.py (operations) and training/memory.py (H, F, q, k, V; h, f; e bytes an element). Bytes
that go through the GPU's memory outside of products and attention, a token of a language layer:

    e*(2H + 4H + 3H + 2*(q + k) + 3F)   a norm reads and writes; a residual addition with the norm of its sum reads two
                                   and writes two, the other one reads two and writes one; norms of q and k with rotary
                                   embedding read and write; SwiGLU
    e*(9h + 6h + 2f)               a row of a vision layer: the same with a plain MLP, and a bias of v too. Ranks
                                   of tensor parallelism have all of 9h, as it has no sequence parallelism, and share
                                   the rest
    V*(2e + 4*4)                   loss: logits written and read, and their FP32 copy twice written and read

Head and loss are those of the released code, for every slot of a pack: a plan does not know how many tokens are
targets. Training computes both for targets only (onevision.model.loss), about a quarter of them in stage 1.5.

A forward pass costs that once, a backward pass twice, a second forward pass once more (never for the loss). Each
micro-batch also adds to the FP32 gradients, 8 bytes a trained parameter.
"""

from __future__ import annotations

from dataclasses import dataclass

from onevision.model.presets import PATCH_VALUES, SPATIAL_MERGE_SIZE, Architecture
from onevision.model.sizes import parameters
from onevision.model.stages import StagePart
from onevision.recipe import ModelRecipe, ParallelRecipe
from onevision.training.flops import PartFlops, Work, recompute_parts, step_parts

ELEMENT = 2  # bytes of a BF16 value


@dataclass(frozen=True)
class Packs:
    """The mean pack. Samples have one image each and are alike: a spread of lengths makes attention dearer."""

    length: int  # T, slots
    samples: float
    sample_tokens: float
    sample_patches: float
    most_patches: int = 0  # of the pack that has most; 0: not known

    @property
    def fill(self) -> float:
        """Share of the slots that hold real tokens."""
        return self.samples * self.sample_tokens / self.length

    @property
    def patches(self) -> float:
        """Patches of a pack."""
        return self.samples * self.sample_patches

    @property
    def rows(self) -> float:
        """Rows of the vision tower: patches, and a class token an image."""
        return self.samples * (self.sample_patches + 1)


@dataclass(frozen=True)
class PackWork:
    """Operations of a pack, forward, backward and again where recomputed; `model` of real tokens alone, once."""

    linear: dict[str, float]  # vision, adapter, language without the head, head
    attention: dict[str, float]  # vision, language
    model: float  # what MFU counts


def pack_work(architecture: Architecture, packs: Packs, model: ModelRecipe) -> PackWork:
    """Operations of the mean pack. Sums over samples are those of one sample times the samples of a pack."""
    sample = _both(architecture, Work([packs.sample_tokens], [packs.sample_patches]), model)
    empty = packs.length - packs.samples * packs.sample_tokens
    padding = _both(architecture, Work([empty], []), model)
    linear = {name: packs.samples * sample[name].linear + padding[name].linear for name in sample}
    attention = {name: packs.samples * sample[name].attention + padding[name].attention for name in sample}
    # Forward, and a gradient of the weights where they are trained; that of the inputs is needed in every stage.
    passes = 2 + ("language" not in model.freeze)
    head = passes * head_forward(architecture, packs.length)
    linear = linear | {"language": linear["language"] - head, "head": head}
    once = step_parts(architecture, Work([packs.sample_tokens], [packs.sample_patches]), model.freeze)
    model_flops = packs.samples * sum(part.linear + part.attention for part in once.values())
    return PackWork(linear, attention, model_flops)


def head_forward(architecture: Architecture, tokens: float) -> float:
    """Forward operations of the head."""
    return 2.0 * tokens * architecture.language.hidden_size * architecture.language.vocab_size


def image_copies(packs: Packs, micro_batch: int, context: int) -> float:
    """How often an image is computed when `context` ranks share the tokens of a micro-batch: once on each that has some
    of its tokens. An image of m tokens, wherever it lies, touches 1 + m/c of the 2C chunks of c tokens; of the cuts
    between them one has the same rank on both sides."""
    chunk = micro_batch * packs.length / (2 * context)
    cuts = packs.sample_patches / SPATIAL_MERGE_SIZE**2 / chunk * (context - 1) / context
    return min(1 + cuts, context)


def memory_bytes(
    architecture: Architecture, packs: Packs, model: ModelRecipe, part: StagePart, parallel: ParallelRecipe
) -> dict[str, float]:
    """Bytes of element-wise work of a pack on a tensor-parallel rank of a stage: language, vision, loss."""
    vision, language = architecture.vision, architecture.language
    q, k = language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim
    again = int(model.recompute == "full")
    layer = ELEMENT * (9 * language.hidden_size + 2 * (q + k) + 3 * language.ffn_hidden_size)
    tensor = parallel.tensor
    whole, divided = 9 * vision.hidden_size, 6 * vision.hidden_size + 2 * vision.ffn_hidden_size
    row = ELEMENT * ((whole + divided) / tensor if parallel.split_vision else whole + divided / tensor)
    through_vision = int("vision" not in model.freeze)
    return {
        "language": packs.length * layer * part.layers * (3 + again) / tensor,
        "vision": packs.rows * row * vision.num_layers * (1 + (2 + again) * through_vision) * part.first,
        "loss": packs.length * language.vocab_size * (2 * ELEMENT + 16) * part.last / tensor,
    }


def stage_parameters(
    architecture: Architecture, model: ModelRecipe, part: StagePart, parallel: ParallelRecipe
) -> tuple[float, float]:
    """Parameters of a tensor-parallel rank of a stage, and those of them that are trained."""
    count = parameters(architecture)
    language = part.layers * count["layer"] + count["embedding"] * part.first
    split = 1 if parallel.split_vision else parallel.tensor
    sizes = {
        "vision": count["vision"] * part.first / split,
        "adapter": count["adapter"] * part.first / split,
        "language": (language + (count["norm"] + count["head"]) * part.last) / parallel.tensor,
    }
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name not in model.freeze)


def copied_bytes(packs: Packs) -> float:
    """Bytes of a pack's patches on their way from the host, in FP32."""
    return 4 * PATCH_VALUES * packs.patches


def _both(architecture: Architecture, work: Work, model: ModelRecipe) -> dict[str, PartFlops]:
    step, again = step_parts(architecture, work, model.freeze), recompute_parts(architecture, work, model)
    return {
        name: PartFlops(part.linear + again[name].linear, part.attention + again[name].attention)
        for name, part in step.items()
    }
