"""Memory that is kept: far fewer pages are faulted in anew, and who set an allocator keeps it."""

import json
import subprocess
import sys
import textwrap

import pytest

STEPS = textwrap.dedent("""
    import json, resource, sys
    from nbtl_search.network.allocator import give_back, keep_freed_memory
    kept = keep_freed_memory() if sys.argv[1] == "keep" else None
    import torch, psutil
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    def step():
        return sum(float(torch.ones(10, 2**20).sum()) for _ in range(8))
    step()
    before = faults()
    for _ in range(10):
        step()
    n_faults = faults() - before
    before = psutil.Process().memory_info().rss
    give_back()
    back = before - psutil.Process().memory_info().rss
    print(json.dumps({"kept": kept, "n_faults": n_faults, "given_back": back}))
""")


def steps(how, **environment):
    done = subprocess.run(
        [sys.executable, "-c", STEPS, how],
        env={"PATH": "", "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_freed_memory_is_kept_between_steps_and_given_back_after_them():
    usual, kept = steps("leave"), steps("keep")
    assert kept["kept"] is True
    # 80 blocks of 40 MiB, which is above what glibc ever keeps by itself.
    assert kept["n_faults"] < usual["n_faults"] / 4
    assert kept["given_back"] > 8 * 2**20


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_a_user_who_set_an_allocator_keeps_it(name):
    assert steps("keep", **{name: ""})["kept"] is False
