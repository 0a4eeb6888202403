import subprocess
import sys


def test_a_program_that_knows_more_operators_ends_as_it_should() -> None:
    # onnx 1.21 crashes where a function of ours outlives Python.
    code = """
import atexit
from onnx import defs
from tilewright.schemas import register_schemas
atexit.register(lambda: print(defs.has("MatMulNBits", "com.microsoft")))
register_schemas()
register_schemas()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "False\n", "")
