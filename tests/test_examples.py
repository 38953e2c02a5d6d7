"""The examples for clusters: their syntax, and that the commands in them exist."""

import re
import shlex
import subprocess

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from anl import launch
from anl.cli import make_parser
from anl.paper import settings
from tests.conftest import ROOT

SLURM, SKY = ROOT / "examples" / "slurm.sh", ROOT / "examples" / "skypilot.yaml"
SKY_KEYS = {"name", "workdir", "resources", "num_nodes", "envs", "setup", "run"}  # of SkyPilot's task, as far as used


def commands(text):
    """The words after `anl` of every command in a text, variables replaced by a number."""
    lines = re.sub(r'"?\$\{?[A-Z_]+\}?"?', "1", text).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith("anl ")]


def test_the_slurm_script_is_valid_and_says_what_to_submit():
    subprocess.run(["bash", "-n", SLURM], check=True)
    submitted = re.findall(r"examples/slurm\.sh (train .+)", SLURM.read_text())
    assert len(submitted) == 2
    for words in submitted:
        assert make_parser().parse_args(shlex.split(words)).command in launch.SPREAD


def test_the_slurm_script_asks_accelerate_for_a_process_a_gpu_on_every_node(tmp_path):
    """Run with stand-ins for SLURM's and Accelerate's programs, as node 1 of 2 with 4 GPUs each."""
    stand_ins = {"scontrol": 'echo first; echo second', "srun": 'shift; SLURM_NODEID=1 "$@"', "accelerate": 'printf "%s\\n" "$@"'}
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\n")
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["bash", SLURM, "--params", "my params.yaml", "train", "--seed", "0"], cwd=tmp_path, check=True, text=True,
                          capture_output=True, env={"PATH": "/usr/bin:/bin", "SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2",
                                                    "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "8"})
    words = done.stdout.splitlines()
    assert words.pop(0) == "launch"
    asked = launch_command_parser().parse_args(words)
    assert (asked.num_machines, asked.num_processes, asked.machine_rank, asked.main_process_ip) == (2, 8, 1, "first")
    assert asked.multi_gpu and asked.module and asked.training_script == "anl.cli"
    options = make_parser().parse_args(asked.training_script_args)
    assert (options.command, options.params, options.seed) == ("train", "my params.yaml", 0)


def test_the_skypilot_task_has_its_keys_and_runs_commands_that_exist():
    task = yaml.safe_load(SKY.read_text())
    assert set(task) == SKY_KEYS and task["num_nodes"] == 1
    subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True, check=True)
    found = [make_parser().parse_args(words) for words in commands(task["run"])]
    assert [options.command for options in found] == ["target", "train"] and all(options.processes == 1 for options in found)


@pytest.mark.parametrize("page", ["scale_launch.md"])
def test_the_commands_of_the_page_exist(page):
    cells = re.findall(r"`([^`]+)`", (ROOT / "book" / page).read_text())
    found = [make_parser().parse_args([*shlex.split(cell)[1:]]) for cell in cells if cell.startswith("anl ") and "--" in cell]
    assert {options.command for options in found} == {"train"}


def test_the_papers_experiment_starts_with_the_same_three_commands_in_readme_and_book():
    full = settings.load(ROOT / "profiles/paper.yaml")
    for name, head in (("README.md", "## The paper's experiment, on GPUs"), ("book/scale.md", "## The paper's experiment")):
        block = re.search(r"```(?:bash)?\n(.*?)```", (ROOT / name).read_text().split(head)[1], re.DOTALL)[1]
        fetch, limited, whole = re.sub(r"\s*#.*| *(?<=do)\n *", " ", block.replace("; do\n  ", "; do ")).strip().splitlines()
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        loop = re.fullmatch(r"for id in (.+?); do (anl fetch \$id --from /data/\$id --accept-licence); done", fetch.strip())
        assert set(loop[1].split()) == set(full.sets)
        options = make_parser().parse_args(shlex.split(loop[2].replace("$id", "genimage"))[1:])
        assert (options.id, options.source, options.accept_licence) == ("genimage", "/data/genimage", True)
        options = make_parser().parse_args(shlex.split(limited)[1:])
        assert (options.command, options.stage, options.limit) == ("paper", None, 8)
        assert shlex.split(whole) == ["dvc", "repro", full.pipeline]
