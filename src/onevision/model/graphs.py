"""CUDA graphs of the language model's layers: `performance.cuda_graphs`.

Packs differ in their segments, images and patches, but all have the same number of tokens. So what language computes
from one attention to the next has one shape. It is recorded once, and then started as a whole, forward and backward,
instead of kernel by kernel from Python. Attention, whose segments differ, runs between the graphs; vision, embedding,
the last norm and the loss run as ever:

    embedding -> [piece 0] -> attention 0 -> [piece 1] -> attention 1 -> ... -> [piece L] -> norm, loss

Piece 0 is what the first layer does before its attention, piece i what layer i - 1 does after its own and layer i
before.

A graph works at fixed places in memory. The activations that a piece keeps for its backward pass are those of the
layers without graphs, at places of their own that nobody else uses: vision's backward pass cannot have them either. A
piece also has a copy of the attention's output. The gradients that go from piece to attention to piece are copied into
places that all pieces share, and those of parameters are added to `main_grad` by the graph.

**Not yet run on a GPU.** On a CPU the same code is tested with a record of operators in the place of a CUDA graph, with
PyTorch's modules and with the interpreted kernels of a GPU: not one bit differs (`tests/model/test_graphs.py`).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.transformer.transformer_block import TransformerBlock
from torch import Tensor

from onevision.model.attention import SegmentParams
from onevision.model.layer import Layer

Compute = Callable[[], tuple[Tensor, ...]]
# Records what a call computes, without or with computing it: its results, whose values are those of the last start, and
# what starts it.
Record = Callable[[Compute], tuple[tuple[Tensor, ...], Callable[[], None]]]


def cuda_record(device: torch.device) -> Record:
    """Records of CUDA graphs that share their memory: they are to be started in the order in which they were recorded,
    all of a forward pass, then all of a backward pass."""
    pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def record(compute: Compute) -> tuple[tuple[Tensor, ...], Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Threads that copy batches go on meanwhile, and may ask for memory.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            results = compute()
        return results, graph.replay

    return record


@dataclass(frozen=True)
class Gradients:
    """Places that the backward passes of all pieces share: they follow each other, and none outlives the next."""

    attended: Tensor  # [T, h*d]
    residual: Tensor  # [T, 1, H]
    heads: tuple[Tensor, ...]  # of q [T, h, d], k and v [T, g, d]


class Piece:
    """What lies between two attentions: the end of one layer and the begin of the next."""

    def __init__(
        self, closes: Layer | None, opens: Layer | None, residual: Tensor, angles: Tensor, record: Record
    ) -> None:
        """Record the forward pass for `residual`, whose place is the one where each pass finds it, and `angles`."""
        self.opens, self.residual = opens, residual.detach().requires_grad_()
        self.attended: Tensor | None = None
        if closes is not None:
            projection = closes.self_attention.linear_proj
            width = projection.weight.shape[1]
            self.attended = residual.new_zeros(len(residual), width).requires_grad_()
        parts = _closing(closes) + _opening(opens)
        self.parameters = [p for part in parts for p in part.parameters() if p.requires_grad]

        def compute() -> tuple[Tensor, ...]:
            hidden = self.residual if closes is None else closes.after_attention(self.attended, self.residual)
            return (hidden,) if opens is None else opens.before_attention(hidden, angles, None)

        with _stand_ins(parts) as self._weights:
            self.results, self._forward = record(compute)
        self._backward: Callable[[], None] = _unrecorded

    def record_backward(self, gradients: Gradients, record: Record) -> None:
        """Record the backward pass: from `gradients` of the results to those of what came in, and into main_grad."""
        self.gradients = gradients
        inputs = [self.residual] if self.attended is None else [self.residual, self.attended]
        results, above, weights = self.results, self._above(), self._weights

        def compute() -> tuple[Tensor, ...]:
            for weight in weights:
                weight.grad_added_to_main_grad = False  # a product that adds its own says so
            found = torch.autograd.grad(results, [*inputs, *weights], above)
            for weight, gradient in zip(weights, found[len(inputs) :], strict=True):
                if not weight.grad_added_to_main_grad:
                    weight.main_grad.add_(gradient)
            gradients.residual.copy_(found[0])
            if self.attended is not None:
                gradients.attended.copy_(found[1])
            return ()

        _, self._backward = record(compute)
        self.results = tuple(result.detach() for result in results)  # what they were made of is not needed any more
        self._weights = []

    def forward(self, attended: Tensor | None, residual: Tensor) -> tuple[Tensor, ...]:
        """Residual, q, k and v of the attention's output and the residual; of the last piece, hidden states."""
        if self.attended is not None:
            self.attended.copy_(attended)
        _place(residual, self.residual)
        self._forward()
        return tuple(result.detach() for result in self.results)

    def backward(self, above: Sequence[Tensor]) -> tuple[Tensor | None, Tensor]:
        """Gradients of the attention's output and the residual, of those of the results."""
        for gradient, place in zip(above, self._above(), strict=True):
            _place(gradient, place)
        self._backward()
        return None if self.attended is None else self.gradients.attended, self.gradients.residual

    def _above(self) -> tuple[Tensor, ...]:
        return (self.gradients.residual, *self.gradients.heads)[: len(self.results)]


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, piece: Piece, ready: Callable[[Piece], None], attended: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.piece, ctx.ready = piece, ready
        return piece.forward(attended, residual)

    @staticmethod
    def backward(ctx: Any, *above: Tensor) -> tuple[None, None, Tensor | None, Tensor]:
        below = ctx.piece.backward(above)
        ctx.ready(ctx.piece)
        return None, None, *below


class LanguageGraphs:
    """The layers of a decoder as pieces between attentions. The decoder's own forward pass is used until they are
    recorded, and where nothing is trained."""

    def __init__(
        self, decoder: TransformerBlock, record: Record, ready: Callable[[torch.nn.Parameter], None] | None = None
    ) -> None:
        """`ready` is told of each parameter whose gradient of a micro-batch is in its main_grad."""
        self._decoder, self._eager, self._record = decoder, decoder.forward, record
        self._tell = ready
        self._pieces: list[Piece] = []
        self._seen: tuple[Tensor, Tensor] | None = None  # hidden states and angles of an eager pass: shapes, dtypes
        decoder.forward = self._run

    def prepare(self) -> None:
        """Record the graphs, if there are none and a pass has shown how large everything is. To be called before a
        step: what stands in main_grad is lost. The eager pass has compiled and chosen kernels, which a recording
        cannot."""
        if self._pieces or self._seen is None:
            return
        hidden, self._angles = self._seen
        self._seen = None
        gc.collect()  # what is freed by chance may not be freed in the middle of a recording
        layers = list(self._decoder.layers)
        residual = torch.zeros_like(hidden)
        for closes, opens in zip([None, *layers], [*layers, None], strict=True):
            piece = Piece(closes, opens, residual, self._angles, self._record)
            self._pieces.append(piece)
            residual = piece.results[0]
        _, *heads = self._pieces[0].results
        attended = self._pieces[-1].attended
        assert attended is not None
        gradients = Gradients(
            attended=torch.zeros_like(attended),
            residual=torch.zeros_like(hidden),
            heads=tuple(torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in heads),
        )
        for piece in reversed(self._pieces):
            piece.record_backward(gradients, self._record)

    def _run(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        rotary_pos_emb: Tensor,
        packed_seq_params: SegmentParams,
    ) -> Tensor:
        """Hidden states [T, 1, H] after the last norm."""
        trains = torch.is_grad_enabled() and self._decoder.training and hidden_states.requires_grad
        if not trains or not self._pieces:
            if trains:
                self._seen = torch.zeros_like(hidden_states), torch.zeros_like(rotary_pos_emb)
            return self._eager(
                hidden_states=hidden_states,
                attention_mask=attention_mask,
                rotary_pos_emb=rotary_pos_emb,
                packed_seq_params=packed_seq_params,
            )
        self._angles.copy_(rotary_pos_emb)
        attended, residual = None, hidden_states
        for piece in self._pieces:
            residual, *heads = _Start.apply(piece, self._ready, attended, residual)
            if piece.opens is not None:
                attended = piece.opens.self_attention.attend(*heads, packed_seq_params)
        return self._decoder.final_layernorm(residual)

    def _ready(self, piece: Piece) -> None:
        if self._tell is not None:
            for parameter in piece.parameters:
                self._tell(parameter)


def _closing(layer: Layer | None) -> list[torch.nn.Module]:
    return [] if layer is None else [layer.self_attention.linear_proj, layer.pre_mlp_layernorm, layer.mlp]


def _opening(layer: Layer | None) -> list[torch.nn.Module]:
    if layer is None:
        return []
    attention = layer.self_attention
    return [layer.input_layernorm, attention.linear_qkv, attention.q_layernorm, attention.k_layernorm]


@contextmanager
def _stand_ins(parts: Sequence[torch.nn.Module]) -> Iterator[list[torch.nn.Parameter]]:
    """Inside, other parameters on the same memory stand in the places of those of `parts` that are trained.

    A parameter's gradient leaves autograd at a node that belongs to the stream in which it was made, and Megatron holds
    the nodes of training. A CUDA graph, recorded in another stream, cannot have one of them: training's stream would
    have to wait for the recording. A stand-in has a node of the recording.
    """
    places = [
        (module, name, parameter)
        for part in parts
        for module in part.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    others = []
    for module, name, parameter in places:
        others.append(torch.nn.Parameter(parameter.detach()))
        others[-1].__dict__.update(parameter.__dict__)  # main_grad among them
        setattr(module, name, others[-1])
    try:
        yield others
    finally:
        for module, name, parameter in places:
            setattr(module, name, parameter)


def _place(value: Tensor, place: Tensor) -> None:
    """Bring a value to its place, if it is not there: one piece gives the next what it finds there."""
    if value.data_ptr() != place.data_ptr():
        place.copy_(value)


def _unrecorded() -> None:
    raise RuntimeError("the backward pass was not recorded")
