"""The command line in a process of its own that need not import anything again.

A command spends most of its time importing torch, timm and Optuna, and tests run hundreds. Here one
server per test process imports them once, and each command is a fork of it: with its own
arguments, environment, standard streams and exit code. What is to be killed, or to live on, is
started as users start it (`Program.start`).

A command runs in a folder whose file has the name of a module: what it starts must not import that.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.processes import CONTEXT


@functools.cache
def _folder_of_a_user():
    folder = Path(tempfile.mkdtemp(prefix="nbtl-cwd-"))
    folder.joinpath("random.py").write_text('raise ImportError("a file of the user was imported")')
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _be_the_command(arguments, environment, folder, cwd):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    streams = (os.devnull, f"{folder}/out", f"{folder}/err")
    for number, path in enumerate(streams):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115
    sys.argv = ["nbtl-search", *arguments]
    from nbtl_search.cli import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # a forked process of multiprocessing leaves without


def run(arguments, *, environment, timeout_s):
    """Run the command line to its end, as `subprocess.run` does."""
    with tempfile.TemporaryDirectory(prefix="nbtl-command-") as folder:
        process = CONTEXT.Process(
            target=_be_the_command,
            args=(list(arguments), dict(environment), folder, str(_folder_of_a_user())),
        )
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout_s)
        out, err = (
            path.read_text("utf-8") if (path := Path(folder, name)).exists() else ""
            for name in ("out", "err")
        )
        return subprocess.CompletedProcess(arguments, process.exitcode, out, err)
