"""The peers have our sizes, see the same tokens, and keep samples apart as we do."""

from __future__ import annotations

import pytest
import torch

from benchmarks.throughput import peers
from benchmarks.throughput.packs import TEXT, synthetic_batch
from benchmarks.throughput.peers import Peer, build_peer, measure_peer, missing, peer_inputs
from onevision.model.presets import PRESETS
from onevision.training.memory import parameter_counts

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_peer_has_the_parameters_of_our_language_model() -> None:
    model = build_peer(Peer(model="tiny"), CPU)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameter_counts(PRESETS["tiny"])["language"]


def test_a_peer_keeps_packed_samples_apart() -> None:
    peer = Peer(model="tiny", precision="autocast")
    model = build_peer(peer, CPU)
    batch = synthetic_batch(TEXT, sequence_length=256, packs=1, vocab_size=1024, seed=1)
    given = peer_inputs(peer, batch, CPU)
    given.pop("labels")
    first = int(batch.cu_seqlens[1])
    changed = given["input_ids"].clone()
    changed[0, :first] = (changed[0, :first] + 1) % 1000
    with torch.no_grad():
        before = model(**given, use_cache=False).logits[0, first:]
        after = model(**given | {"input_ids": changed}, use_cache=False).logits[0, first:]
    torch.testing.assert_close(before, after, rtol=0, atol=1e-5)


def test_a_peer_learns_the_targets_that_we_learn() -> None:
    batch = synthetic_batch(TEXT, sequence_length=256, packs=1, vocab_size=1024, seed=1)
    labels = peer_inputs(Peer(model="tiny"), batch, CPU)["labels"][0]
    rows = batch.target_rows
    assert torch.equal(labels[rows + 1], batch.labels[rows])
    assert int((labels != -100).sum()) == len(rows)


def test_a_peer_is_measured() -> None:
    row = measure_peer(Peer(model="tiny", sequence_length=256, micro_batches=1, warmup=1, steps=2))
    assert row["finite"] and row["tokens_per_second_per_gpu"] * row["seconds"] == pytest.approx(row["tokens"])


def test_what_a_peer_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "GPU" in missing(Peer(attention="torch_varlen")) or torch.cuda.is_available()
    monkeypatch.setattr(peers, "version", lambda package: None if package == "flash-attn" else "4.0")
    assert missing(Peer(attention="flash_attention_2")) == "flash-attn not installed"  # flash-attn-4 is another one
