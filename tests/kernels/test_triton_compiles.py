import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


@pytest.mark.parametrize("capability", ["80", "90"])
def test_triton_compiles_every_kernel_without_a_gpu(root, tmp_path, capability):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tests.kernels.compile_triton", capability]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, seen in json.loads(done.stdout).items():
        # A product and a sum are rounded one by one, and a quotient exactly: that is what equal bits rest on.
        assert not seen["fma.rn.f32"], name
        assert not seen["div.full.f32"], name
        assert seen["div.rn.f32"] == name.startswith("quantize"), name
        assert seen["mma"] == name.startswith(("gemm", "conv")), name
        assert seen["shared"] <= 64 * 1024, name
