"""A file system of 64 KiB for one shell script, in a mount namespace of its own: root or not, nothing is left mounted."""

import os
import subprocess

import pytest

from tests.conftest import ROOT


def run(folder, script, *arguments):
    """Run a shell `script` inside `folder`, which is then 64 KiB large; arguments: its $1, $2, ... Skips the test where this
    machine grants no namespace."""
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    mounted = "mount -t tmpfs -o size=64k tmpfs . && cd \"$PWD\" || exit 77\n"
    try:
        done = subprocess.run([*namespace, "sh", "-c", mounted + script, "sh", *map(str, arguments)], cwd=folder, check=False,
                              capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode == 77 or done.stderr.startswith("unshare: "):
        pytest.skip("no right to mount a file system, not even in a namespace of its own")
    return done
