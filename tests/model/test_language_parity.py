"""The language model against transformers' Qwen3, and no leakage between the samples of a pack."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from onevision.convert.mapping import language_groups
from onevision.model.device import runtime_context
from onevision.model.onevision import OneVisionModel
from tests.model.common import (
    LANGUAGE,
    SMALL,
    Pack,
    checkpoint_tensors,
    random_model,
    random_pack,
    with_heads,
)

TOLERANCE = 1e-4


def qwen3(model: OneVisionModel) -> Qwen3ForCausalLM:
    """transformers' Qwen3 with the weights of the model's language part."""
    language = model.architecture.language
    config = Qwen3Config(
        vocab_size=language.vocab_size,
        hidden_size=language.hidden_size,
        intermediate_size=language.ffn_hidden_size,
        num_hidden_layers=language.num_layers,
        num_attention_heads=language.num_attention_heads,
        num_key_value_heads=language.num_query_groups,
        head_dim=language.head_dim,
        max_position_embeddings=language.max_position_embeddings,
        rms_norm_eps=language.rmsnorm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": language.rotary_base},
        tie_word_embeddings=False,
        attn_implementation="eager",
        dtype=torch.float32,
    )
    reference = Qwen3ForCausalLM(config).eval()
    tensors = checkpoint_tensors(model)
    state: dict[str, Tensor] = {}
    for group in language_groups(language):
        state |= group.split(tensors[group.key])
    reference.load_state_dict(state, strict=True)
    return reference


def logits(model: OneVisionModel, pack: Pack) -> Tensor:
    with torch.no_grad(), runtime_context(torch.device("cpu")):
        return model(*pack.inputs)[0]


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("lengths", [(37,), (5, 37, 1, 21, 21, 2)], ids=["one sample", "packed"])
def test_logits_equal_qwen3(device: torch.device, heads: int, groups: int, lengths: tuple[int, ...]) -> None:
    model = random_model(with_heads(heads, groups))
    reference = qwen3(model)
    pack = random_pack([(length, ()) for length in lengths])
    ours = logits(model, pack)
    with torch.no_grad():
        theirs = torch.cat([reference(segment[None]).logits[0] for segment in pack.tokens.split(lengths)])
    assert theirs.abs().max() > 1
    assert (ours - theirs).abs().max() < TOLERANCE


def test_loss_equals_cross_entropy_of_qwen3(device: torch.device) -> None:
    model = random_model()
    pack = random_pack([(19, ()), (33, ())])
    with torch.no_grad(), runtime_context(device):
        total, ours = model(*pack.inputs, labels=pack.labels)
        theirs = torch.cat([qwen3(model)(segment[None]).logits[0] for segment in pack.tokens.split(pack.lengths)])
    expected = torch.nn.functional.cross_entropy(theirs, pack.labels, reduction="none")
    assert (ours - expected).abs().max() < TOLERANCE
    assert torch.equal(total, ours.sum())


def test_positions_do_not_come_from_the_place_in_the_pack(device: torch.device) -> None:
    """The same sample at two places of a pack has the same logits: positions restart at every sample."""
    model = random_model()
    pack = random_pack([(23, ()), (9, ()), (23, ())])
    tokens = pack.tokens.clone()
    tokens[-23:] = tokens[:23]
    ours = logits(model, pack.with_values(tokens=tokens))
    assert torch.equal(ours[:23], ours[-23:])


def test_no_gradient_reaches_another_sample(device: torch.device) -> None:
    """The gradient of each sample's loss is exactly zero at every other sample's embeddings and patches."""
    model = random_model()
    samples = [(9, [(4, 6)]), (14, ()), (7, [(2, 4), (6, 2)]), (9, [(4, 6)])]
    pack = random_pack(samples)
    patch_counts = [sum(height * width for height, width in images) for _, images in samples]
    for one in range(len(samples)):
        at_text, at_patches = input_gradients(model, pack, one)
        parts = zip(at_text.split(pack.lengths), at_patches.split(patch_counts), strict=True)
        for other, (text, patches) in enumerate(parts):
            assert patches.shape[0] == patch_counts[other]
            if other == one:
                assert text.abs().sum() > 0
                assert all(patches.abs().sum(1) > 0)
            else:
                assert torch.count_nonzero(text) == 0
                assert torch.count_nonzero(patches) == 0


def input_gradients(model: OneVisionModel, pack: Pack, sample: int) -> tuple[Tensor, Tensor]:
    """Gradients of one sample's loss at the text embeddings [T, H] and the patches [P, 588] of the whole pack."""
    patches = pack.patches.clone().requires_grad_()
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    handle = model.language.embedding.register_forward_hook(keep)
    with runtime_context(torch.device("cpu")):
        rows = torch.arange(len(pack.tokens)).split(pack.lengths)[sample]
        total, _ = model(*pack.with_values(patches=patches).inputs, labels=pack.labels, target_rows=rows)
        total.backward()
    handle.remove()
    assert embedded[0].grad is not None and patches.grad is not None
    return embedded[0].grad[:, 0], patches.grad


def test_causal_inside_a_sample(device: torch.device) -> None:
    model = random_model()
    pack = random_pack([(8, ()), (12, ())])
    changed = pack.tokens.clone()
    changed[15] = (changed[15] + 1) % LANGUAGE.vocab_size
    before, after = logits(model, pack), logits(model, pack.with_values(tokens=changed))
    assert torch.equal(before[:15], after[:15])
    assert not torch.equal(before[15:], after[15:])


def test_pack_with_images_equals_its_samples_alone(device: torch.device) -> None:
    """Whole model: the logits of a pack with images of several sizes are those of its samples, each alone."""
    model = random_model(SMALL)
    samples = [(9, [(4, 6)]), (14, ()), (7, [(2, 4), (6, 2)])]
    pack = random_pack(samples)
    together = logits(model, pack).split(pack.lengths)
    token_parts = pack.tokens.split(pack.lengths)
    patch_parts = pack.patches.split([sum(h * w for h, w in images) for _, images in samples])
    for sample, tokens, patches, expected in zip(samples, token_parts, patch_parts, together, strict=True):
        alone = random_pack([sample]).with_values(tokens=tokens, patches=patches)
        assert (logits(model, alone) - expected).abs().max() < TOLERANCE
