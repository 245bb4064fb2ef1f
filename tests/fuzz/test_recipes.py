"""Recipe files and overrides that nobody meant: each becomes a recipe, or one line that names the key or the file."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from jobs.__main__ import JOBS, main
from jobs.arguments import recipe_of
from jobs.sites import load_site
from onevision import report
from onevision.errors import InputError
from onevision.recipe import Recipe, known_keys, load_recipe, save_recipe
from tests.fuzz.harness import Box, campaign
from tests.fuzz.strategies import damaged, damages, texts, values

Fuzz = Callable[[Callable[..., None]], Counter[str]]
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"
FILES = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.glob("*/*.yaml"))
SITES = sorted((Path(__file__).parents[2] / "sbatch" / "clusters").glob("*.yaml"))
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
# Texts that are not what yaml.dump writes.
RAW = [
    b"",
    b"\0",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbfname: a\n",
    b"---\n---\n",
    b"name: a\n---\nname: b\n",
    b"name: a\nname: b\n",
    b"train: {steps: 1}\ntrain: {steps: 2}\n",
    b"%YAML 9.9\n---\nname: a\n",
    b"\tname: a",
    b"name: [",
    b"- 1",
    b"5",
    b"null",
    b"!!python/object/apply:os.system ['touch owned']",
    b"name: !!python/object/apply:os.system ['touch owned']",
    b"name: !!python/name:os.system",
    b"name: !!binary '####'",
    b"seed: !!int abc",
    b"seed: !!int ''",
    b"seed: !!float x",
    b"seed: !!timestamp x",
    b"seed: 2026-99-99",
    b"seed: 190:20:30",
    b"seed: 0b2",
    b"seed: 1__0",
    b"name: !!set {a, b}",
    b"name: !!omap [a: 1]",
    b"name: !!pairs [a: 1]",
    b"name: !!null x",
    b"name: !!bool maybe",
    b"name: !unknown x",
    b"seed: " + b"9" * 5000,
    b"seed: -" + b"9" * 5000,
    b"seed: 1" + b"0" * 400,
    b"seed: 0x" + b"f" * 5000,
    b"name: " + b"[" * 3000,
    b"name: " + b"[" * 3000 + b"]" * 3000,
    b"name: " + b"{a: " * 2000,
    b"? " * 3000,
    b"- " * 3000,
    b"name: &a [*a]",
    b"name: &a {b: *a}",
    b"&a name: *a",
    b"<<: {name: a}",
    b"<<: 5",
    b"<<: *a",
    b"train: &t {steps: 3}\n<<: *t",
    b"1: 2",
    b"null: 1",
    b"true: 1",
    b"1.5: 2",
    b"[1]: 2",
    b"{a: b}: 2",
    b"? [a]\n: b",
    b"'': 1",
    b"'a.b': 1",
    b"'train.steps': 3",
    b"extends: 5",
    b"extends: [a]",
    b"extends: {a: b}",
    b"extends: ''",
    b"extends: '\\0'",
    b"extends: .",
    b"extends: ..",
    b"extends: /dev/zero",
    b"extends: /dev/stdin",
    b"extends: /proc/self/mem",
    b"extends: recipe.yaml",
    b"extends: ./recipe.yaml",
    b"extends: sub/../recipe.yaml",
    b"extends: '" + b"a" * 5000 + b"'",
    b'extends: "\\ud800"',
    b"extends: ${name}",
    b"extends: ???",
    b"name: ${name}",
    b"name: ${seed}\nseed: ${name}",
    b"name: ${oc.env:PATH}",
    b"name: ${oc.create:[1]}",
    b"name: '${'",
    b"name: ${oc.decode:'[[['}",
    b"train: ${model}",
    b"data: {mixture: ${name}}",
    b"data: {mixture: {a: 1}}",
    b"data: {mixture: [[1]]}",
    b"data: {mixture: '${data.columns}'}",
    b"model: {freeze: {vision: 1}}",
    b"data: {columns: [[a]]}",
    b"name: ???",
    b"train: ???",
    b"train: null",
    b"train: {steps: null}",
    b"concepts: []",
    b'name: "\\x1b[2J\\n\\u2028"',
    b"seed: .inf",
    b"train: {steps: 1e400}",
    BOMB.encode(),
    BOMB.encode() + b"name: *i\n",
    b"#" * 3_000_000,
]

overrides = st.lists(
    st.tuples(st.sampled_from(known_keys()), texts).map("=".join)
    | st.tuples(st.sampled_from(known_keys()), values.map(lambda value: yaml.dump(value, default_flow_style=True))).map(
        "=".join
    )
    | st.sampled_from([raw.decode("utf-8", "replace").replace(": ", "=", 1)[:4000] for raw in RAW])
    | st.tuples(st.text("abtrain.[]=0'\"-{}:$", max_size=12), texts).map("".join),
    max_size=3,
)
changes = st.lists(st.tuples(st.sampled_from(known_keys()), values), max_size=4)


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested dictionary, whatever stands in the way."""
    *sections, name = key.split(".")
    for section in sections:
        inner = tree.get(section)
        tree[section] = tree = inner if isinstance(inner, dict) else {}
    tree[name] = value


def ends(box: Box, folder: Path, call: Callable[[], Recipe], named: str) -> None:
    """The end of an attempt to read a recipe: one that can be written and read again, or a line that names `named`."""
    recipe, error = box.attempt(call, errors=(InputError,))
    if error is not None:
        said = (named, "override", "recipe /", *known_keys())
        assert any(name in str(error) for name in said), error
        return
    assert isinstance(recipe, Recipe)
    save_recipe(recipe, folder / "saved.yaml")
    assert repr(load_recipe(folder / "saved.yaml")) == repr(recipe)


@campaign(80, file=st.sampled_from(FILES), changes=changes, overrides=overrides)
def changed_values(box: Box, file: str, changes: list[tuple[str, Any]], overrides: list[str]) -> None:
    """A real recipe with values of other types, sizes and shapes, and overrides."""
    folder = box.folder()
    shutil.copytree(RECIPES, folder / "recipes")
    path = folder / "recipes" / file
    tree = yaml.safe_load(path.read_text())
    for key, value in changes:
        put(tree, key, value)
    path.write_text(yaml.dump(tree, allow_unicode=True), encoding="utf-8", errors="surrogatepass")
    ends(box, folder, lambda: load_recipe(path, overrides), str(path))


@campaign(100, raw=st.sampled_from(RAW) | st.binary(max_size=60), extended=st.booleans())
def written_by_hand(box: Box, raw: bytes, extended: bool) -> None:
    """Files that are no recipe, or one in a way that YAML allows and nobody expects."""
    folder = box.folder()
    path = folder / "recipe.yaml"
    path.write_bytes(raw)
    if extended:
        (folder / "child.yaml").write_text("extends: recipe.yaml\nname: child\n")
    ends(box, folder, lambda: load_recipe(folder / ("child.yaml" if extended else "recipe.yaml")), str(folder))
    assert not (folder / "owned").exists() and not Path("owned").exists()


@campaign(60, file=st.sampled_from(FILES), changes=damages)
def damaged_files(box: Box, file: str, changes: list[tuple[str, float, object]]) -> None:
    """A real recipe with flipped bits, cut off, or with stretches overwritten, dropped or repeated."""
    folder = box.folder()
    shutil.copytree(RECIPES, folder / "recipes")
    path = folder / "recipes" / file
    path.write_bytes(damaged(path.read_bytes(), changes))
    ends(box, folder, lambda: load_recipe(path), str(folder))


PLACES = [
    "nodes=0",
    "nodes=x",
    "nodes=²",
    f"nodes={'9' * 5000}",
    "time=1",
    "time=0:0:0",
    "time=²:00:00",
    "site=nowhere",
    "site=../here",
    "site=/dev/zero",
    "site=/dev/zero.yaml",
    "site=\0",
    "processes=-1",
    "processes=",
    "=",
    "=x",
    "a=b=c",
]
TAKE_A_RECIPE = (
    "corpus",
    "vocabulary",
    "concepts",
    "balance",
    "concepts-report",
    "pack",
    "pack-report",
    "plan",
    "init",
    "import",
    "train",
    "resume",
    "pipeline",
    "evaluate",
    "export",
    "report",
)


@campaign(
    40, file=st.sampled_from(FILES), overrides=overrides, more=st.lists(st.sampled_from(PLACES) | texts, max_size=3)
)
def arguments(box: Box, file: str, overrides: list[str], more: list[str]) -> None:
    """What follows the name of a job: the recipe and the place, or one line."""
    given = [str(RECIPES / file), *overrides, "site=here", *more]
    box.attempt(lambda: recipe_of(given, "train"), errors=(InputError,))


def imported(box: Box) -> None:
    """Import what jobs import: libraries such as matplotlib make folders of their own when they are."""
    for job in JOBS.values():
        import_module(job.target.partition(":")[0])
    for module in iter_modules(report.__path__):
        import_module(f"{report.__name__}.{module.name}")


@campaign(
    60,
    imported,
    job=st.sampled_from(TAKE_A_RECIPE) | texts | st.sampled_from(["-x", "--", "-", "--helpx", "-hx"]),
    given=st.lists(overrides.map(lambda found: "".join(found[:1])) | texts | st.sampled_from(PLACES), max_size=2),
    wrong=st.sampled_from(["train.stpes=1", "seed=x", "data.corpus.x=\x1b[2J", "two", "nme=\n"]),
)
def commands(box: Box, job: str, given: list[str], wrong: str) -> None:
    """A command that cannot be right ends with exit code 2 and one line, and makes nothing."""
    recipe = box.folder() / "recipe.yaml"
    recipe.write_text("nme: x")
    stderr = io.StringIO()
    with redirect_stderr(stderr), redirect_stdout(io.StringIO()) as stdout:
        code, _ = box.attempt(lambda: main([job, str(recipe), "site=here", *given, wrong]), count=False)
    if code == 0:
        assert {"-h", "--help"} & {job, *given} and stdout.getvalue()
        box.counts["help"] += 1
        return
    line = stderr.getvalue()
    assert code == 2 and line.startswith("error: ") and line.endswith("\n") and line[:-1].isprintable(), (code, line)
    box.counts["exit code 2"] += 1


@campaign(30, file=st.sampled_from(SITES), changes=damages, raw=st.none() | st.sampled_from(RAW))
def site_profiles(box: Box, file: Path, changes: list[tuple[str, float, object]], raw: bytes | None) -> None:
    """A profile of a cluster that was damaged, or is none."""
    path = box.folder() / "site.yaml"
    path.write_bytes(damaged(file.read_bytes(), changes) if raw is None else raw)
    box.attempt(lambda: load_site(path), errors=(InputError,))


@pytest.mark.parametrize(
    "function",
    [changed_values, written_by_hand, damaged_files, arguments, commands, site_profiles],
    ids=lambda f: f.__name__,
)
def test_recipes(fuzz: Fuzz, function: Callable[..., None]) -> None:
    fuzz(function)
