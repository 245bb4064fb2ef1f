"""Where the time of a step goes: marks on the device's own clock, from one phase to the next.

A mark says which phase begins; a phase lasts until the next mark, so the phases of a step sum to the step. On a GPU a
mark is a CUDA event in the stream that computes: it costs a microsecond and does not wait. On a CPU it is the clock.

    data                    batches read and copied to the device (its waiting included)
    vision, adapter, embedding, language, loss              forward; loss: head, cross entropy and its sums
    loss/language/adapter/vision backward                   from the gradient of a part's output on
    reducing gradients      what is not hidden behind the backward pass
    optimizer               norm of the gradients, clipping, update, weights gathered
    other                   what lies between: sums of the step, the schedule, the host
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from onevision.training.stepper import Stepper


class Timeline:
    """Marks of the steps of a stepper; `attach` once, `begin` where a step begins, `end` after the last one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._steps: list[list[tuple[str, Any]]] = []
        self._handles: list[Any] = []

    def attach(self, stepper: Stepper) -> None:
        """Mark the phases of the stepper's steps, by hooks of the model's parts and of their outputs' gradients."""
        config = stepper.parts[0].config
        stepper.mark = self.mark
        for model in stepper.parts:
            self._handles.append(model.register_forward_pre_hook(lambda *_: self.mark("embedding")))
            parts = [(model.language.decoder, "language", "loss")]
            if model.part.first:
                parts += [(model.vision, "vision", "adapter"), (model.adapter, "adapter", "embedding")]
            for part, name, after in parts:
                self._part(part, name, after)
                self._handles.append(part.register_forward_hook(self._gradient_hook(f"{name} backward")))
        finalize = config.finalize_model_grads_func

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.mark("reducing gradients")
            result = finalize(*args, **kwargs)
            self.mark("other")
            return result

        config.finalize_model_grads_func = marked

    def begin(self) -> None:
        """A step begins, with the reading of its data."""
        self._steps.append([("data", self._now())])

    def mark(self, phase: str) -> None:
        """A phase of the step begins."""
        if self._steps:
            self._steps[-1].append((phase, self._now()))

    def end(self) -> None:
        """The last step has ended."""
        self._steps.append([("end", self._now())])

    def clear(self) -> None:
        """Forget all steps."""
        self._steps.clear()

    def steps(self) -> list[dict[str, float]]:
        """Seconds of each phase of every step that has ended."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        result = []
        for marks, following in zip(self._steps, self._steps[1:], strict=False):
            seconds: dict[str, float] = defaultdict(float)
            for (phase, start), (_, stop) in zip(marks, [*marks[1:], following[0]], strict=True):
                seconds[phase] += self._between(start, stop)
            result.append(dict(seconds))
        return result

    def _part(self, part: torch.nn.Module, name: str, after: str) -> None:
        self._handles.append(part.register_forward_pre_hook(lambda *_: self.mark(name)))
        self._handles.append(part.register_forward_hook(lambda *_: self.mark(after)))

    def _gradient_hook(self, name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.requires_grad:
                output.register_hook(lambda gradient: self.mark(name))

        return hook

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop)) / 1000 if self._device.type == "cuda" else stop - start
