"""Debian's tuxpaint stamps as records: 785 drawings and photographs with captions in English, 713 in Chinese as well.

The package tuxpaint-stamps-default (GPL-2) has NAME.png and NAME.txt; the text begins with the English caption, and
other languages follow as lines LANGUAGE.utf8=CAPTION. An image with two captions is two samples.
"""

from __future__ import annotations

from pathlib import Path

from onevision.corpus.record import Message, Part, Record

STAMPS = Path("/usr/share/tuxpaint/stamps")
CHINESE = "zh_CN.utf8="
QUESTIONS = {"en": "What does the picture show?", "zh": "图片里有什么？"}


def stamp_records(folder: Path = STAMPS) -> list[Record]:
    """The captioned PNG stamps in the order of their paths, English before Chinese."""
    found = []
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if not text.exists():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        for language, caption in captions(text).items():
            question = (Part("image"), Part("text", QUESTIONS[language]))
            messages = (Message("user", question), Message("assistant", (Part("text", caption),)))
            image, kind = path.read_bytes(), name.partition("/")[0]
            found.append(
                Record(f"{name}-{language}", (image,), messages, kind, language, "tuxpaint-stamps", "GPL-2.0-only")
            )
    return found


def captions(path: Path) -> dict[str, str]:
    """The captions of a stamp: "en", and "zh" where there is one."""
    first, *others = path.read_text(encoding="utf-8").splitlines()
    chinese = [line.removeprefix(CHINESE).strip() for line in others if line.startswith(CHINESE)]
    return {"en": first.strip(), **({"zh": chinese[0]} if chinese and chinese[0] else {})}
