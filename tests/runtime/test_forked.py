"""Processes that are forked from one with torch imported."""

import json
import os

from fer_lightning.runtime.forked import ForkedProcess

PROBE = """
import json, os, sys, threading
import torch
state = {
    "arguments": sys.argv[1:],
    "gpu": torch.cuda.is_initialized(),
    "threads": [thread.name for thread in threading.enumerate()],
    "session": os.getsid(0) == os.getpid(),
    "folder": os.getcwd(),
    "variables": sorted(os.environ),
    "threads of torch": torch.get_num_threads(),
}
print(json.dumps(state))
"""


def test_it_inherits_nothing_but_imports(tmp_path):
    (tmp_path / "probe.py").write_text(PROBE)
    variables = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"]}
    with (tmp_path / "out").open("wb") as out:
        line = ["-o", os.devnull, str(tmp_path / "probe.py"), "a=1"]
        process = ForkedProcess("cProfile", line, tmp_path, variables, (out.fileno(), out.fileno()))
    assert process.wait(120) == 0
    state = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert state == {
        "arguments": ["a=1"],
        "gpu": False,
        "threads": ["MainThread"],
        "session": True,
        "folder": str(tmp_path),
        "variables": sorted(variables),
        "threads of torch": 1,
    }
