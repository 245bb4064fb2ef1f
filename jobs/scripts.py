"""Plain sbatch scripts of the training jobs, for sites without submitit: the very lines that submitit's jobs have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from jobs.cluster import ROOT, parameters, python_command, slurm_executor, srun_options
from jobs.sites import CLUSTERS, Site, load_site
from jobs.train import train_work
from onevision.errors import InputError
from onevision.files import write_text
from onevision.recipe import load_recipe

SITES = ("a800", "h100")
STAGES = ("stage1", "stage1_5", "stage2")
RECIPES = Path("jobs/recipes/8b")
NODES = 16


def run(arguments: list[str]) -> int:
    """python -m jobs scripts

    Writes sbatch/<site>/<stage>.sbatch anew, for the sites and stages of this repository.
    """
    if arguments:
        raise InputError(f"scripts takes no arguments, not {' '.join(arguments)}")
    for path, text in scripts().items():
        write_text(ROOT / path, text)
        print(path)
    return 0


def scripts() -> dict[Path, str]:
    """Text of each script, by its path in the repository."""
    sites = [load_site(CLUSTERS / f"{name}.yaml") for name in SITES]
    return {
        Path("sbatch") / site.name / f"{stage}.sbatch": script(RECIPES / f"{stage}.yaml", site)
        for site in sites
        for stage in STAGES
    }


def script(recipe_file: Path, site: Site) -> str:
    """The batch script of training a recipe on a site, without a path of this machine in it."""
    recipe = load_recipe(ROOT / recipe_file)
    work = train_work(recipe, NODES)
    executor = slurm_executor(work, site)
    values = parameters(work, site)
    executor.update_parameters(use_srun=False, comment=f"{recipe.output}")
    log = work.records.folder
    srun = ["srun", "--unbuffered", f"--output={log}/%j_%t_log.out", *srun_options(site, site.cpus_per_task)]
    command = f'{shlex.join(srun)} {python_command(site, gpu=True)} -u -m jobs.task {recipe_file} "$@"'
    text = executor._make_submission_file_text(command, "")
    assert all(line in text for line in [*values["setup"], *values["teardown"]])
    text = text.replace("export SUBMITIT_EXECUTOR=slurm\n", "").replace("export SUBMITIT_LOG_LEVEL=WARNING\n", "")
    text = text.replace(f"cd {shlex.quote(str(Path.cwd()))} ", 'cd "$SLURM_SUBMIT_DIR" ')
    for here in (Path.cwd(), ROOT):
        text = text.replace(f"--bind {shlex.quote(str(here))} ", '--bind "$SLURM_SUBMIT_DIR" ')
        text = re.sub(rf"'([^' ]*){re.escape(str(here))}/([^' ]*)'", r"\1\2", text)  # quoted where it has a blank
        text = text.replace(f"{here}/", "")
    folder = f"{recipe.output}/log/slurm"
    ranks, batch = site.ranks(NODES), recipe.train.global_batch_size
    settings = f" train.global_batch_size={-(-batch // ranks) * ranks}" if batch % ranks else ""  # else it is refused
    head = (
        f"# Training of {recipe_file} on {site.name}, without submitit. In the repository's folder:\n"
        f"#     mkdir -p {folder} && sbatch --nodes={NODES} sbatch/{site.name}/{recipe_file.stem}.sbatch{settings}\n"
        "# Settings of the recipe may follow, as in optimizer.lr=2e-5. Written by `make scripts`, of the profile.\n"
    )
    return text.replace("#!/bin/bash\n", f"#!/bin/bash\n{head}", 1)
