"""The models that lmms-eval finds by the entry point `onevision` of the group `lmms_eval.models`.

    lmms-eval --model onevision --model_args run=runs/8b/stage2,step=3500 --tasks mmstar
    lmms-eval --model onevision_exported --model_args pretrained=runs/8b/stage2/export --tasks mmstar

`make eval` uses the same classes, and shares the questions among GPUs.
"""

from __future__ import annotations

from typing import Any


def manifests() -> list[Any]:
    """One manifest a model; their classes are imported when lmms-eval asks for them."""
    from lmms_eval.models.registry_v2 import ModelManifest

    here = __name__.rpartition(".")[0]
    return [
        ModelManifest(model_id="onevision", chat_class_path=f"{here}.checkpoint.OneVision"),
        ModelManifest(model_id="onevision_exported", chat_class_path=f"{here}.exported.OneVisionExported"),
    ]
