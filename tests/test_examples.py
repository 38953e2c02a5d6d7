"""The examples for clusters: their syntax, and that the commands in them exist."""

import re
import shlex
import subprocess

import pytest
import typer.main
import yaml
from accelerate.commands.launch import launch_command_parser

from anl.cli import app
from tests.conftest import ROOT

SLURM, SKY = ROOT / "examples/slurm.sh", ROOT / "examples/skypilot.yaml"


def parsed(words):
    """(names of the command, its arguments) of the words after `anl`. Raises if there is no such command or option."""
    command, names = typer.main.get_command(app), []
    with command.make_context("anl", list(words)) as context:
        words = [*context._protected_args, *context.args]
        while words and hasattr(command, "commands"):
            command = command.commands[words[0]]
            names.append(words.pop(0))
        return names, command.make_context(names[-1], words, parent=context).params


def commands(text):
    """Words after `anl`, or after `--module anl.cli`, of every command line in a text; variables are replaced by `1`."""
    text = re.sub(r'"?\$\{?[A-Z_]+\}?"?', "1", text.replace("\\\n", " "))
    found = re.findall(r"^\W*(?:(?:\S*/)?anl|.*--module anl\.cli|.*sbatch (?:--nodes=\d+ )?examples/slurm\.sh) (\w.*)", text, re.MULTILINE)
    return [shlex.split(re.split(r" [|>] | && |;", line)[0], comments=True) for line in found]


@pytest.mark.parametrize("path", [SLURM, SKY], ids=lambda path: path.name)
def test_commands_exist(path):
    found = [parsed(words)[0] for words in commands(path.read_text())]
    assert ["profile"] in found and ["train"] in found and "make setup" in path.read_text()


def test_the_slurm_script_starts_a_process_for_each_gpu_of_every_node(tmp_path):
    """Run with stand-ins for SLURM and Accelerate, as node 1 of 2 with 4 GPUs each."""
    stand_ins = {"scontrol": 'echo first; echo second', "srun": 'shift; SLURM_NODEID=1 "$@"', "accelerate": 'printf "%s\\n" "$@"'}
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:$PATH\n")
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(["bash", SLURM, "--set", "method.step=1 ", "train", "main"], cwd=tmp_path, check=True, text=True,
                          capture_output=True, env={"PATH": "/usr/bin:/bin", "SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2",
                                                    "SLURM_JOB_NODELIST": "x", "SLURM_CPUS_PER_TASK": "8"})
    words = done.stdout.splitlines()
    assert words.pop(0) == "launch"
    options = launch_command_parser().parse_args(words)
    assert (options.num_machines, options.num_processes, options.machine_rank, options.main_process_ip) == (2, 8, 1, "first")
    assert options.multi_gpu and options.module and options.training_script == "anl.cli"
    assert options.training_script_args == ["--set", "method.step=1 ", "train", "main"]


def test_the_skypilot_task_is_valid():
    task = yaml.safe_load(SKY.read_text())
    assert set(task) == {"name", "workdir", "resources", "num_nodes", "envs", "setup", "run"} and task["num_nodes"] == 1
    subprocess.run(["bash", "-n"], input=task["setup"] + task["run"], text=True, check=True)
    words = shlex.split(task["run"].replace("\\\n", " ").replace("$SKYPILOT_NUM_GPUS_PER_NODE", "8").split("accelerate launch")[1])
    options = launch_command_parser().parse_args(words)
    assert options.num_processes == 8 and options.module and options.training_script_args[:2] == ["train", "$EXPERIMENT"]


@pytest.mark.parametrize("page", ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "book").glob("*.md"))])
def test_commands_of_the_documentation_exist(page):
    text = (ROOT / page).read_text()
    blocks = "\n".join(re.findall(r"```(?:bash|console|sh)?\n(.*?)```", text, re.DOTALL))
    inline = "\n".join(line for line in re.findall(r"(?<!`)`([^`\n]+)`", text) if "..." not in line)
    for words in commands(f"{blocks}\n{inline}"):
        try:
            parsed(words)
        except Exception as problem:  # `anl data fetch` may be mentioned without its argument, and --help ends the parser
            if type(problem).__name__ not in ("MissingParameter", "Exit"):
                pytest.fail(f"{page}: `anl {shlex.join(words)}`: {problem!r}")
