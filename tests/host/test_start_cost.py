"""What ComfyUI pays at its start for having the pack."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from tools import inprocess

alone = set(sys.modules)
inprocess.boot(Path(sys.argv[1]), custom_nodes={}, models={})
before = set(sys.modules)
import asyncio, importlib, nodes
from tools import base_directory
pack = Path(sys.argv[1]) / "custom_nodes" / base_directory.PACK_FOLDER
pack.symlink_to(base_directory.CUSTOM_NODES[base_directory.PACK_FOLDER], target_is_directory=True)
assert asyncio.new_event_loop().run_until_complete(nodes.load_custom_node(str(pack), set()))
print("loaded:", *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
HEAVY = {"faiss", "open_clip", "segment_anything", "timm", "pandas", "matplotlib"}


def test_starting_with_the_pack_imports_nothing_heavy(tmp_path: Path, checkout: Path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import runpy, sys\nlaunch = runpy.run_path({str(checkout / 'tools' / 'launch.py')!r})\n"
        f"launch['expose_packages']()\n{PROGRAM}",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-P", str(program), str(tmp_path / "base")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = set(done.stdout.split("loaded:")[1].split())
    assert not loaded & HEAVY
