"""Functions of the task onevision_heldout, which its YAML file names."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from onevision.data.image import decode_image
from onevision.evaluation.accuracy import normalise


def doc_to_messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns before the answer, with their images where they stand."""
    images = iter(doc["images"])
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "url": decode_image(next(images))}
                if part["type"] == "image"
                else {"type": "text", "text": part["text"]}
                for part in message["content"]
            ],
        }
        for message in json.loads(doc["messages"])
    ]


def doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    """All images."""
    return [decode_image(data) for data in doc["images"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """The turns before the answer as text, an image as <image>: what a log shows, and part of the answer's key."""
    lines = []
    for message in json.loads(doc["messages"]):
        text = "".join("<image>" if part["type"] == "image" else part["text"] for part in message["content"])
        lines.append(f"{message['role']}: {text}")
    return "\n".join(lines)


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is right: `accuracy`, 0 or 1."""
    return {"accuracy": float(normalise(results[0]) == normalise(doc["answer"]))}
