"""The whole pipeline, each step a job that waits for those before it: records -> corpus -> concepts -> balance -> packs
-> weights -> stage 1 -> 1.5 -> 2 -> export and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from jobs.arguments import parse
from jobs.cluster import Work, queue, refuse_second
from jobs.concepts import STEPS, concept_work, step_folder, vocabulary_problems
from jobs.convert import SOURCES, export_work, import_work
from jobs.data import corpus_work, data_ranks, pack_work, required
from jobs.demo import source_work
from jobs.evaluate import evaluate_work
from jobs.harness import evaluate_awaited, refuse_without_harness
from jobs.place import Place, place_of, queued_line, start
from jobs.preflight import run_problems
from jobs.sites import Site
from jobs.train import check_training, init_work, train_work
from onevision.errors import InputError
from onevision.files import read_json
from onevision.recipe import Recipe, load_recipe

STAGES = ("stage1", "stage1_5", "stage2")


@dataclass(frozen=True)
class Step:
    """A job of the pipeline, the folder that shows that it is done, and the names of the steps it waits for."""

    work: Work
    output: Path
    after: tuple[str, ...] = ()
    recipe: Recipe | None = None  # of a training step
    names: Recipe | None = None  # of a vocabulary step
    also: tuple[str, ...] = ()  # further folders that it makes

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the later steps find there when it has run."""
        return (str(self.output), *self.also)

    @property
    def done(self) -> bool:
        """Whether a training step has nothing left to do; the others find that out by themselves in a moment."""
        return self.recipe is not None and (self.output / "step.json").exists()


def run(arguments: list[str]) -> int:
    """python -m jobs pipeline RECIPES [site=NAME] [nodes=N] [ranks=N] [language=DIR vision=DIR | exported=DIR] [key=…]

    All steps of the recipes in the folder RECIPES (stage0.yaml to stage2.yaml), from records to an evaluated and
    exported model: `nodes` train, `ranks` processes make corpus and packs. On a cluster every step is queued at once
    and waits for those it needs; a step that fails cancels what depends on it. Without Slurm the steps run here, one
    after the other. The same command goes on where it stopped.
    """
    folder, overrides, own = parse(arguments, "pipeline", "folder of recipes", (*SOURCES, "ranks"))
    place = place_of(own)
    sources = {key: own[key] for key in SOURCES if key in own}
    steps = pipeline_steps(folder, overrides, sources, place.nodes, data_ranks(own), place.site)
    refuse_others([step for step in steps if step.done], sources)
    for step in steps:
        if step.done:
            print(f"{step.work.name}: done already, in {step.output}")
    if place.here:
        if any(step.recipe is not None and step.recipe.evaluation.tasks for step in steps):
            refuse_without_harness(place.site)
        for step in steps:
            if not step.done:
                start(step.work, place)
            if step.recipe is not None:  # also of training that was done before: its evaluation may have failed
                evaluate_awaited(step.recipe, place)
        return 0
    steps = [step for step in steps if not step.done]
    refuse(steps, place)
    jobs: dict[str, int] = {}
    for step in steps:
        after = {jobs[name]: name for name in step.after if name in jobs}
        work = replace(step.work, after=after, minutes=place.minutes)
        jobs[work.name] = queue(work, place.site)
        print(queued_line(work, jobs[work.name], place.site), flush=True)
    return 0


def pipeline_steps(
    folder: Path,
    overrides: list[str],
    sources: dict[str, str],
    nodes: int,
    ranks: int = 1,
    site: Site | None = None,
) -> list[Step]:
    """The steps in an order in which they can run: training on `nodes` nodes, data steps in `ranks` processes of one.
    Training queues the evaluation of its checkpoints on the `site`; without Slurm they follow it.

    Raises:
        InputError: a recipe is wrong, or nothing says where the weights of stage 0 come from.
    """
    stage0, *stages = (load_recipe(folder / f"{name}.yaml", overrides) for name in ("stage0", *STAGES))
    last = stages[-1]
    data = last.data
    steps = []
    if stage0.model.preset == "tiny" and not Path(data.source).exists():  # its records are drawn, not given
        steps.append(Step(source_work(stage0), Path(data.source), also=(data.tokenizer, last.evaluation.corpus)))
    steps.append(Step(corpus_work(last, required(data.corpus, "data.corpus"), ranks), Path(data.corpus), ("source",)))
    packed = _packed(stages, ranks, steps[-1].work.name)
    steps += [step for found in packed.values() for step in found]
    steps.append(Step(_weights(stage0, sources), Path(stage0.output), ("source",), stage0))
    before = steps[-1].work.name
    for recipe in stages:
        output = Path(recipe.output)
        *_, pack = packed[recipe.data.packs]
        queues = site if site is not None and site.scheduler == "slurm" else None
        steps.append(Step(train_work(recipe, nodes, queues), output, (pack.work.name, before), recipe))
        before = recipe.name
    run = Path(last.output)
    steps.append(Step(export_work(last, run, None, run / "export", parity="no"), run / "export", (before,)))
    if last.evaluation.corpus:
        steps.append(Step(evaluate_work(last, run), run / "evaluation", (before,)))
    return steps


def refuse_others(done: list[Step], sources: dict[str, str]) -> None:
    """Refuse what was done with other settings than those that are asked for now.

    Raises:
        InputError: everything of that kind.
    """
    problems = [problem for step in done if step.recipe is not None for problem in run_problems(step.recipe, {})]
    for step in done:
        if sources and step.work.name == "import" and read_json(step.output / "step.json").get("step") != "import":
            problems.append(f"{step.output} holds weights that were drawn: choose another output for those to import")
    if problems:
        raise InputError(*problems)


def refuse(steps: list[Step], place: Place) -> None:
    """Refuse the whole pipeline before its first job is queued.

    Raises:
        InputError: everything that is wrong with any step.
    """
    made = frozenset(path for step in steps for path in step.outputs)
    problems = []
    for step in steps:
        refuse_second(step.work.records, place.site)
        if step.recipe is not None and step.work.needs == "nodes":
            check = check_training(step.recipe, place, made)
            problems += [f"{step.work.name}: {problem}" for problem in check.problems]
        if step.names is not None:
            problems += [f"{step.work.name}: {problem}" for problem in vocabulary_problems(step.names)]
    if problems:
        raise InputError(f"{len(problems)} problems, nothing was queued:", *problems)


def _packed(stages: list[Recipe], ranks: int, corpus: str) -> dict[str, list[Step]]:
    """For each folder of packs that a stage reads the steps that end with it: vocabulary, concepts and balance where
    these are packs of a balanced selection, and pack. The first waits for the step `corpus`.

    Raises:
        InputError: a folder is not named, or one of packs belongs to different corpora.
    """
    found: dict[str, list[Step]] = {}
    origin: dict[str, Recipe] = {}
    for recipe in stages:
        required(recipe.data.packs, "data.packs")
        packs = recipe.data.packs
        first = origin.setdefault(packs, recipe)
        if (first.data.corpus, first.data.balanced) != (recipe.data.corpus, recipe.data.balanced):
            raise InputError(
                f"{first.name} and {recipe.name} read data.packs={packs} of different corpora: name another folder"
            )
        if packs in found:
            continue
        steps, before = [], corpus
        for name in STEPS if recipe.data.balanced else ():
            work = _own(concept_work(name, recipe, ranks), found)
            names = recipe if name == "vocabulary" else None
            steps.append(Step(work, step_folder(name, recipe), (before,), names=names))
            before = work.name
        steps.append(Step(_own(pack_work(recipe, Path(packs), ranks), found), Path(packs), (before,)))
        found[packs] = steps
    return found


def _own(work: Work, packed: dict[str, list[Step]]) -> Work:
    """The work, with a number in its name where earlier steps have that."""
    taken = {step.work.name for steps in packed.values() for step in steps}
    names = (work.name, *(f"{work.name}-{number}" for number in range(2, 9)))
    return replace(work, name=next(name for name in names if name not in taken))


def _weights(recipe: Recipe, sources: dict[str, str]) -> Work:
    if set(sources) in ({"language", "vision"}, {"exported"}):
        return import_work(recipe, sources)
    if sources:
        raise InputError("weights come from language=DIR and vision=DIR together, or from exported=DIR")
    if recipe.model.preset == "tiny" or (Path(recipe.output) / "step.json").exists():
        return init_work(recipe)
    raise InputError(
        f"{recipe.output} holds no weights to start from: give language=DIR (Qwen3) and vision=DIR (RICE-ViT), or "
        "exported=DIR, or run make import first"
    )
