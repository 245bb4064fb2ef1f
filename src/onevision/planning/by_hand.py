"""The check of the published run as lines that a person can redo with a pocket calculator."""

from __future__ import annotations

from onevision.model.presets import PATCH_VALUES, PRESETS
from onevision.planning.published import DAYS, GPUS, HFU, SAMPLES, SAMPLES_PER_PACK, Check

_SHOWN_CAUSES = 6


def arithmetic(found: Check) -> list[str]:
    """The check step by step: operations, seconds of a step, days, error, and what was published."""
    prediction, packs = found.prediction, SAMPLES / SAMPLES_PER_PACK.value
    implied = DAYS * 86400 / found.steps
    hfu = prediction.hardware_flops / (implied * GPUS * prediction.peak)
    by_hfu = prediction.hardware_flops / (HFU * GPUS * prediction.peak) * found.steps / 86400
    spread = found.error * found.days
    side = "within" if found.reproduced else "outside of"
    causes = sorted(found.causes.items(), key=lambda item: -item[1])
    return [
        f"packs          {SAMPLES / 1e6:g}e6 samples / {SAMPLES_PER_PACK.value:g} a pack = {packs:,.0f}",
        f"steps          {packs:,.0f} / ({GPUS} GPUs x 1 pack) = {found.steps:,.0f}",
        *(f"{'FLOP':<15}{line}" for line in operations(found)),
        *prediction.lines(),
        f"days           {found.steps:,.0f} x {prediction.seconds:.3f} s / 86,400 = {found.days:.2f}",
        f"GPU hours      {found.days:.2f} x 24 x {GPUS} = {found.days * 24 * GPUS:,.0f}; "
        f"published {DAYS * 24 * GPUS:,.0f}",
        f"memory         {prediction.memory.total / 1e9:.1f} GB a GPU at its fullest ({prediction.memory.moment})",
        *(f"error          {cause}: {effect:.1%}" for cause, effect in causes[:_SHOWN_CAUSES]),
        f"error          root of the sum of squares of all {len(causes)}: {found.error:.0%}",
        f"predicted      {found.days:.1f} days +- {spread:.1f}; published {DAYS} days ({DAYS / found.days - 1:+.0%}): "
        f"{side} the error",
        f"published      {DAYS} days are {implied:.2f} s a step, HFU {hfu:.0%}; with the HFU {HFU:.0%} that its "
        f"authors state it would be {by_hfu:.1f} days",
    ]


def operations(found: Check) -> list[str]:
    """Where the operations of the lines of products and attention come from: forward x1, backward x2, recomputed x1."""
    architecture, packs = PRESETS["8b"], found.packs
    vision, language = architecture.vision, architecture.language
    hidden, ffn, width = language.hidden_size, language.ffn_hidden_size, vision.hidden_size
    q, k = language.num_attention_heads * language.head_dim, language.num_query_groups * language.head_dim
    layer = hidden * (q + 2 * k) + q * hidden + 3 * hidden * ffn
    row = 4 * width**2 + 2 * width * vision.ffn_hidden_size
    pad = packs.length - packs.samples * packs.sample_tokens
    pairs = packs.samples * packs.sample_tokens * (packs.sample_tokens + 1) / 2 + pad * (pad + 1) / 2
    squares = packs.samples * (packs.sample_patches + 1) ** 2
    merged = architecture.merged_size
    adapter = merged * merged + merged * hidden
    tower = 2 * packs.rows * vision.num_layers * row * 4
    embedding = 2 * packs.patches * PATCH_VALUES * width * 2
    return [
        f"a language layer: {hidden} x ({q} + 2 x {k}) + {q} x {hidden} + 3 x {hidden} x {ffn} = {layer:.5g} weights",
        f"layers: 2 x {packs.length} tokens x {language.num_layers} x {layer:.5g} x 4 passes = "
        f"{2 * packs.length * language.num_layers * layer * 4:.4g}",
        f"head: 2 x {packs.length} x {hidden} x {language.vocab_size} x 3 passes (not recomputed) = "
        f"{2 * packs.length * hidden * language.vocab_size * 3:.4g}",
        f"pairs of tokens: {packs.samples:g} x {packs.sample_tokens:.1f}^2 / 2, the padding's {pad:.0f}^2 / 2 = "
        f"{pairs:.4g}",
        f"attention: 4 x {q} x {language.num_layers} x {pairs:.4g} x 4 = {4 * q * language.num_layers * pairs * 4:.4g}",
        f"patches: {packs.samples:g} x {packs.sample_patches:.0f} = {packs.patches:.5g}; with a class token an image "
        f"{packs.rows:.5g} rows",
        f"vision: 2 x {packs.rows:.5g} x {vision.num_layers} x {row:.5g} weights x 4 = {tower:.4g}",
        f"adapter: 2 x {packs.patches / 4:.5g} x {adapter:.5g} x 3 = {2 * packs.patches / 4 * adapter * 3:.4g}",
        f"patch embedding: 2 x {packs.patches:.5g} x {PATCH_VALUES} x {width} x 2 (data need no gradient) = "
        f"{embedding:.4g}",
        f"attention of vision: 4 x {width} x {vision.num_layers} x {squares:.4g} pairs x 4 = "
        f"{4 * width * vision.num_layers * squares * 4:.4g}",
    ]
