"""The layouts, and the pairs of them between which a run goes on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Layout:
    """Ranks of this machine, and how they share a model; those that do not are data-parallel."""

    name: str
    ranks: int
    parallel: dict[str, Any]
    performance: dict[str, Any] = field(default_factory=dict)


OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True, "bucket_size": 20_000}


def _layout(name: str, ranks: int, performance: dict[str, Any] | None = None, **parallel: Any) -> Layout:
    return Layout(name, ranks, parallel, performance or {})


ONE = _layout("one process", 1)
LAYOUTS = {
    layout.name: layout
    for layout in (
        _layout("TP2", 2, tensor=2),
        _layout("TP2+SP", 2, tensor=2, sequence=True),
        _layout("TP2, vision split", 2, tensor=2, split_vision=True),
        _layout("TP4+SP, vision split", 4, tensor=4, sequence=True, split_vision=True),
        _layout("PP2", 2, pipeline=2),
        _layout("PP4", 4, pipeline=4),
        _layout("PP2, layers 1+7", 2, pipeline=2, stage_layers=[1, 7]),
        _layout("PP2xVPP2", 2, pipeline=2, virtual_pipeline=2),
        _layout("CP2", 2, context=2),
        _layout("TP2xCP2+SP", 4, tensor=2, context=2, sequence=True),
        _layout("DP2", 2),
        _layout("DP4", 4),
        _layout("DP2xTP2", 4, tensor=2),
        _layout("PP2xDP2", 4, pipeline=2),
        _layout("PP2xCP2", 4, pipeline=2, context=2),
        _layout("TP2xPP2xDP2", 8, tensor=2, pipeline=2),
        _layout("TP2xPP2xDP2, overlap", 8, OVERLAP, tensor=2, pipeline=2),
        _layout("PP2xVPP2xDP2, overlap", 4, OVERLAP, pipeline=2, virtual_pipeline=2),
        _layout("CP2xDP2, overlap", 4, OVERLAP, context=2),
        _layout("TP2xPP2xVPP2+SP", 4, tensor=2, pipeline=2, virtual_pipeline=2, sequence=True),
    )
}
PAIRS = (
    ("one process", "TP2+SP"),
    ("TP2", "PP2"),
    ("PP2", "one process"),
    ("PP2xVPP2", "CP2"),
    ("CP2", "DP4"),
    ("DP4", "DP2xTP2"),
    ("TP2, vision split", "TP2xCP2+SP"),
    ("PP2xCP2", "TP2, vision split"),
    ("PP2xDP2", "PP4"),
    ("TP2xPP2xDP2", "DP2"),
)


def named(name: str) -> Layout:
    """A layout by its name."""
    return ONE if name == ONE.name else LAYOUTS[name]
