"""The patch merger: LayerNorm, four neighbouring patches side by side, Linear, GELU, Linear to the language width."""

from __future__ import annotations

from megatron.core.models.vision.multimodal_projector import MultimodalProjector
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from onevision.model.configs import row_multiple
from onevision.model.presets import SPATIAL_MERGE_SIZE, Architecture
from onevision.model.specs import Modules
from onevision.model.vision import pad_rows


class PatchMerger(MegatronModule):
    """Keys: layernorm, projector.encoder.linear_fc1, projector.encoder.linear_fc2."""

    def __init__(
        self,
        config: TransformerConfig,
        architecture: Architecture,
        modules: Modules,
        groups: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.layernorm = build_module(
            modules.norm,
            config=config,
            hidden_size=architecture.vision.hidden_size,
            eps=architecture.vision.layernorm_epsilon,
        )
        self.projector = MultimodalProjector(
            config,
            MLPSubmodules(linear_fc1=modules.column_linear, linear_fc2=modules.row_linear),
            projector_type="mlp",
            input_size=architecture.merged_size,
            tp_group=groups.tp if groups is not None else None,
        )
        self.row_multiple = row_multiple(config)

    def forward(self, features: Tensor) -> Tensor:
        """Image tokens [P/4, H] of patch features [P, hidden] in merge-block order."""
        merged = self.layernorm(features).reshape(features.shape[0] // SPATIAL_MERGE_SIZE**2, 1, -1)
        tokens = len(merged)
        padding = -tokens % self.row_multiple
        if padding:  # for FP8, as in the vision tower
            merged = pad_rows(merged, padding)
        return self.projector(merged)[:tokens].squeeze(1)
