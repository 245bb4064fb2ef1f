"""One loader of exported folders in a process of its own: reads prompts, leaves logits and greedy answers.

    python consumer.py KIND FOLDER PROMPTS ANSWERS [new_tokens=N] [threads=N] [device=cpu]

Run by file name with the Python that has the loader. It needs torch, safetensors and the loader, and nothing of this
repository. PROMPTS is a safetensors file with `CASE.input_ids` and `CASE.attention_mask` [B, L], and of prompts with
images `CASE.pixel_values` [P, 588] and `CASE.image_grid_thw` [I, 3]; ANSWERS gets `CASE.logits` float32 [B, L, V] and,
where the loader generates, `CASE.new_tokens` [B, N], and as metadata the versions of what was loaded.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def load_transformers(folder: str, device: str) -> Any:
    """The code beside the weights, as transformers finds it."""
    from transformers import AutoModelForCausalLM

    # Not `dtype`, which came with 4.56: this is understood by all.
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
    return model.to(device)


def load_nemo_automodel(folder: str, device: str) -> Any:
    """NVIDIA's own LLaVA-OneVision-1.5, which reads weights and configuration.

    Its `NeMoAutoModelForImageTextToText.from_pretrained` asks for a CUDA device. On a CPU the same model class gets the
    same tensors through the same renaming.
    """
    if device != "cpu":
        from nemo_automodel import NeMoAutoModelForImageTextToText

        return NeMoAutoModelForImageTextToText.from_pretrained(
            folder, torch_dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=True
        )
    from nemo_automodel.components.models.llava_onevision.model import LLaVAOneVision1_5_ForConditionalGeneration
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = LLaVAOneVision1_5_ForConditionalGeneration(config, attn_implementation="sdpa")
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        tensors |= load_file(path)
    model.load_state_dict(model.state_dict_adapter.from_hf(tensors), strict=True)
    return model.float()


LOADERS = {
    "transformers": (load_transformers, ("transformers", "torch")),
    "nemo-automodel": (load_nemo_automodel, ("nemo-automodel", "transformers", "torch")),
}


def main(arguments: list[str]) -> int:
    """See the head comment."""
    kind, folder, prompts, answers, *settings = arguments
    own = {"new_tokens": "0", "threads": "1", "device": "cpu"} | dict(text.split("=", 1) for text in settings)
    torch.set_num_threads(int(own["threads"]))
    load, packages = LOADERS[kind]
    cases: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in load_file(prompts, device=own["device"]).items():
        case, _, name = key.rpartition(".")
        cases[case][name] = tensor
    model = load(folder, own["device"]).eval()
    left: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for case, inputs in cases.items():
            left[f"{case}.logits"] = model(**inputs).logits.float().cpu()
            # An answer goes on where a prompt ends, so padding on the right has none.
            if int(own["new_tokens"]) and hasattr(model, "generate") and bool(inputs["attention_mask"][:, -1].all()):
                left[f"{case}.new_tokens"] = generated(model, inputs, int(own["new_tokens"]))
    save_file(left, answers, {name: metadata.version(name) for name in packages} | {"class": type(model).__module__})
    return 0


def generated(model: Any, inputs: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    """The `count` most likely tokens that follow each prompt, [B, count], whether or not an answer ends there."""
    model.generation_config.eos_token_id = None
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return ids[:, inputs["input_ids"].shape[1] :].contiguous().cpu()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
