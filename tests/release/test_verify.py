"""Every kind of damage to a bundle is found, and told in a line that names it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.__main__ import main
from onevision.errors import DataError, InputError
from onevision.files import read_json, write_json
from onevision.fingerprint import value_digest
from onevision.release.agree import disagreements
from onevision.release.bundle import Release
from onevision.release.manifest import MANIFEST, SUMS, name_problem, read_manifest, write_manifest
from onevision.release.verify import verify_release

WEIGHTS = "model-00001-of-00001.safetensors"


def flip(path: Path, size: int | None = None) -> None:
    """Change one bit in the middle, or leave `size` bytes, in a new file of that name."""
    content = bytearray(path.read_bytes())
    if size is None:
        content[len(content) // 2] ^= 1
    path.unlink()  # it may be a link to what other tests read
    path.write_bytes(content[:size])


def listed(bundle: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    """Change the files that the manifest lists."""
    content = read_json(bundle / MANIFEST)
    change(content["files"])
    write_json(bundle / MANIFEST, content)


def entry(path: str) -> dict[str, Any]:
    return {"path": path, "bytes": 1, "sha256": "0" * 64}


def lines_of(bundle: Path) -> list[str]:
    """The lines of a check that finds something; the last one sums up."""
    with pytest.raises(DataError) as caught:
        verify_release(bundle)
    *lines, last = str(caught.value).splitlines()
    assert last.startswith(f"{bundle}: {len(lines)} problem")
    return lines


def add_sum(bundle: Path, before: str = "", after: str = "", skip: int = 0) -> None:
    """Change SHA256SUMS: lines before and after, without the first `skip`."""
    lines = (bundle / SUMS).read_text().splitlines(keepends=True)
    (bundle / SUMS).write_text(before + "".join(lines[skip:]) + after)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda b: flip(b / WEIGHTS), f"{WEIGHTS}: changed, its SHA-256 is "),
        (lambda b: flip(b / "loss.png"), "loss.png: changed, its SHA-256 is "),
        (lambda b: flip(b / WEIGHTS, 1000), f"{WEIGHTS}: changed, it has 1,000 bytes instead of "),
        (lambda b: (b / "runs/first/run.json").unlink(), "runs/first/run.json: missing"),
        (lambda b: (b / "runs/x.py").touch(), "runs/x.py: additional, manifest.json does not list it"),
        (lambda b: (b / "x").symlink_to("/etc/passwd"), "x: a link that leads out of the bundle, to /etc/passwd"),
        (lambda b: (b / "up").symlink_to("../.."), "up: a link that leads out of the bundle, to ../.."),
        (lambda b: (b / "again").symlink_to("runs"), "again: a link that leads within the bundle, to runs"),
        (lambda b: (b / "loop").symlink_to("loop"), "loop: a link that leads "),
        (lambda b: os.mkfifo(b / "pipe"), "pipe: neither a file nor a folder"),
        (lambda b: (b / SUMS).unlink(), f"{SUMS}: missing"),
        (lambda b: add_sum(b, before="nonsense\n"), f"{SUMS}: line 1 is not a SHA-256"),
        (lambda b: add_sum(b, after=f"{'0' * 64}  ../x\n"), f"../x: listed in {SUMS}, not"),
        (lambda b: add_sum(b, skip=1), f"README.md: missing in {SUMS}"),
        (lambda b: add_sum(b, before=f"{'0' * 64}  README.md\n", skip=1), f"README.md: {SUMS} has another SHA-256"),
    ],
)
def test_damage_is_named(bundle: Path, damage: Callable[[Path], object], expected: str) -> None:
    damage(bundle)
    (line,) = lines_of(bundle)
    assert line.startswith(expected)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "manifest.json: missing"),
        ("[1, 2", "manifest.json: .*is not valid JSON"),
        ("{}", "manifest.json: is not that of a release bundle"),
        ('{"format": "onevision-release", "version": 2, "files": []}', "manifest.json: has version 2"),
    ],
)
def test_without_a_manifest_there_is_nothing_to_compare_with(bundle: Path, text: str | None, line: str) -> None:
    (bundle / MANIFEST).unlink() if text is None else (bundle / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=f"^{line}"):
        verify_release(bundle)


def test_a_link_in_the_place_of_a_file_is_not_read(bundle: Path, tmp_path: Path) -> None:
    """Also where what it leads to is what the manifest says, and where a folder of the bundle is the link."""
    (bundle / "loss.png").rename(tmp_path / "loss.png")
    (bundle / "loss.png").symlink_to(tmp_path / "loss.png")
    (bundle / "evaluation").rename(tmp_path / "evaluation")
    (bundle / "evaluation").symlink_to(tmp_path / "evaluation")
    found = lines_of(bundle)
    assert f"loss.png: a link that leads out of the bundle, to {tmp_path / 'loss.png'}" in found
    assert "loss.png: missing" in found and "evaluation/step.json: missing" in found


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./README.md", "", "a\\b", "a\nb", MANIFEST]
)
def test_names_that_are_none_of_a_bundle_are_refused(bundle: Path, name: str) -> None:
    assert name_problem(name)
    listed(bundle, lambda files: files.append(entry(name)))
    found = lines_of(bundle)
    assert any("refused, a name in manifest.json that" in line for line in found)
    assert all(line.isprintable() for line in found)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (7, "manifest.json: an entry names no file: 7"),
        ({"path": ["x"]}, "manifest.json: an entry names no file"),
        ({"path": "x", "bytes": True, "sha256": "0" * 64}, "x: manifest.json has no size and SHA-256 of it"),
        ({"path": "x", "bytes": -1, "sha256": "0" * 64}, "x: manifest.json has no size and SHA-256 of it"),
        ({"path": "x", "bytes": 1, "sha256": "0" * 63 + "G"}, "x: manifest.json has no size and SHA-256 of it"),
        (entry("loss.png"), "loss.png: listed twice in manifest.json"),
    ],
)
def test_entries_that_are_none_are_named(bundle: Path, row: object, line: str) -> None:
    listed(bundle, lambda files: files.append(row))  # type: ignore[arg-type]
    assert any(found.startswith(line) for found in lines_of(bundle))


def put(path: Path, key: str, value: object, *, sealed: bool = False) -> None:
    """Set a value of a record by its dotted key; `sealed` gives it the fingerprint of its new content."""
    record = read_json(path)
    *outer, last = key.split(".")
    node = record
    for name in outer:
        node = node[name]
    node[last] = value
    if sealed:
        record["fingerprint"] = value_digest({name: one for name, one in record.items() if name != "fingerprint"})
    write_json(path, record)


def hash_anew(bundle: Path) -> None:
    """What anybody can do who changes a bundle."""
    content = read_json(bundle / MANIFEST)
    write_manifest(bundle, {key: content[key] for key in content if key not in ("format", "version", "files")})
    assert subprocess.run(["sha256sum", "--check", "--quiet", SUMS], cwd=bundle).returncode == 0


def rewrite(path: Path, old: str, new: str) -> None:
    """Change a text."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


ZEROS = "0" * 32


def test_records_that_contradict_each_other_are_named(bundle: Path) -> None:
    cases = [
        ("export/step.json", "inputs.checkpoint", ZEROS, "export/step.json: the weights are of checkpoint 00"),
        ("export/step.json", "summary.step", 9, "export/step.json: the weights are of step 9"),
        ("runs/first/lineage.json", "made_from", {}, "runs/first/lineage.json: its fingerprint is not"),
        ("runs/last/run.json", "id", "other", "runs/last/run.json: is of run other"),
        ("runs/last/checkpoint.json", "step", 9, "runs/last/checkpoint.json: its fingerprint is not"),
        ("data/packs/step.json", "summary.fingerprint", ZEROS, "data/packs/step.json: has fingerprint 00"),
        ("data/corpus/manifest.json", "licences.MIT", 3, "data/corpus/manifest.json: counts other samples"),
        ("data/corpus/manifest.json", "fingerprint", ZEROS, "data/corpus/manifest.json: has fingerprint 00"),
        ("evaluation/step.json", "inputs.checkpoint", ZEROS, "evaluation/step.json: asked checkpoint 00"),
    ]
    for name, key, value, _ in cases:
        put(bundle / name, key, value)
    hash_anew(bundle)
    found = lines_of(bundle)
    for *_, line in cases:
        assert any(one.startswith(line) for one in found), (line, found)
    assert len(found) == len(cases)


def test_a_manifest_a_lineage_a_recipe_and_a_card_that_say_otherwise_are_named(bundle: Path) -> None:
    put(bundle / MANIFEST, "checkpoint.step", 2)
    put(bundle / MANIFEST, "suite.commit", ZEROS)
    put(bundle / "runs/last/lineage.json", "inputs.init_from", ZEROS, sealed=True)
    put(bundle / "runs/last/lineage.json", "inputs.packs", ZEROS, sealed=True)
    rewrite(bundle / "runs/last/recipe.yaml", "lr: 0.002", "lr: 0.1")
    rewrite(bundle / "README.md", "step: 4", "step: 5")
    hash_anew(bundle)
    found = lines_of(bundle)
    for line in (
        "export/step.json: the weights are of step 4, where another record has 2",
        f"README.md: names commit {read_json(bundle / 'runs/last/environment.json')['commit']}",
        "README.md: names step 5",
        "runs/last/lineage.json: started from checkpoint 00",
        "runs/last: packs='00",
        "runs/last: init_from='00",
        "runs/last: optimizer.lr=0.1 (was 0.002)",
        "data/balanced-packs: is not the packs of runs/last",
    ):
        assert any(one.startswith(line) for one in found), (line, found)


def test_records_that_call_for_more_are_refused(bundle: Path) -> None:
    """A recipe that names a file of this machine, and a card whose front matter calls for code."""
    rewrite(bundle / "runs/last/recipe.yaml", "name: last", "extends: /etc/passwd")
    rewrite(bundle / "README.md", "library_name: transformers", "library_name: !!python/name:os.system")
    hash_anew(bundle)
    assert [line.partition(":")[0] for line in lines_of(bundle)] == ["README.md", "runs/last/recipe.yaml"]
    (bundle / "README.md").write_text("# A model\n")
    hash_anew(bundle)
    assert "README.md: has no front matter" in lines_of(bundle)


def test_records_of_any_form_are_told_of_in_lines(released: Release) -> None:
    """What a manifest says of its records may be anything; no file outside is opened for it."""
    content, entries, _ = read_manifest(released.folder)
    files = {entry.path for entry in entries}
    few = content | {"runs": content["runs"][-1:]}  # a recipe takes a moment
    assert [line for line in disagreements(released.folder, few, files) if "data/" not in line] == []
    for key, values in {"suite": (None, 7), "run": ("x", []), "checkpoint": ({}, 7), "data": ([{}], "x")}.items():
        for value in values:
            found = disagreements(released.folder, few | {key: value}, files)
            assert found and all(isinstance(line, str) for line in found), (key, value)
    for value in (None, [], [7], {"name": "last"}):
        assert disagreements(released.folder, content | {"runs": value}, files)
    outside = content | {"runs": [content["runs"][0] | {"name": "../.."}]}
    assert "runs/../../checkpoint.json: manifest.json names it and does not list it" in disagreements(
        released.folder, outside, files
    )


def test_the_command_and_its_exit_codes(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-release", str(bundle)]) == 0
    out = capsys.readouterr().out.splitlines()
    count = sum(path.is_file() for path in bundle.rglob("*"))
    assert out[-2].startswith(f"{bundle}: {count} files, ") and out[-2].endswith(" MB/s)")
    (bundle / "loss.png").unlink()
    (bundle / "more").touch()
    assert main(["verify-release", str(bundle)]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "error: loss.png: missing",
        "more: additional, manifest.json does not list it",
        f"{bundle}: 2 problems, it is not what its manifest.json says",
    ]
    assert main(["verify-release", str(bundle / "none")]) == 2
    assert main(["verify-release"]) == 2
    assert main(["release", str(bundle), "shards=maybe"]) == 2


def test_a_name_that_a_bundle_cannot_have_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "a\nb").touch()
    with pytest.raises(InputError, match="its name is no relative path of printable characters"):
        write_manifest(tmp_path, {})
    (tmp_path / "a\nb").unlink()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="link: a link that leads out of the bundle"):
        write_manifest(tmp_path, {})
    (tmp_path / "link").unlink()
    (tmp_path / "a b").write_bytes(b"x" * 100)
    (entry_found,), digest = write_manifest(tmp_path, {"key": "k"})
    assert json.loads((tmp_path / MANIFEST).read_text())["files"] == [
        {"path": "a b", "bytes": 100, "sha256": entry_found.sha256}
    ]
    assert f"{digest}  {MANIFEST}\n" in (tmp_path / SUMS).read_text()
