"""What importing the package loads, in fresh interpreters."""

from __future__ import annotations

import subprocess
import sys


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_alone_loads_no_heavy_library() -> None:
    loaded = python(
        "import sys, cmsa_fast\n"
        "print([name for name in ('torch', 'torchvision', 'triton', 'numpy') if name in sys.modules])"
    )
    assert loaded == "[]"


def test_the_command_line_loads_its_options_alone() -> None:
    heavy = ("torch", "numpy", "pycocotools", "PIL", "safetensors", "tqdm", "cmsa_fast.data")
    code = f"import sys, cmsa_fast.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_attention_runs_without_triton() -> None:
    result = python(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, cmsa_fast, cmsa_fast.kernels\n"
        "parts = [torch.ones(1, n, 4, requires_grad=True) for n in (5, 5, 5, 3, 3, 3)]\n"
        "attended = cmsa_fast.kernels.cross_modal_attention(*parts)\n"
        "attended.sum().backward()\n"
        "print(round(float(attended.sum()), 3), round(float(parts[2].grad.sum()), 3))"
    )
    assert result == "40.0 20.0"


def test_the_kernels_load_neither_triton_nor_torchvision() -> None:
    """Beyond what importing torch itself loads."""
    loaded = python(
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import cmsa_fast.kernels\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'triton', 'torchvision'}))"
    )
    assert loaded == "[]"


def test_the_operators_load_without_triton_and_say_what_is_missing() -> None:
    message = python(
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import torch, cmsa_fast.kernels.separable_attention.ops, cmsa_fast.kernels.joint_attention.ops\n"
        "from cmsa_fast.kernels import cross_modal_attention, joint_attention\n"
        "parts = [torch.ones(1, n, 4) for n in (5, 5, 5, 3, 3, 3)]\n"
        "for attend, inputs in ((cross_modal_attention, parts), (joint_attention, parts[:3])):\n"
        "    try:\n"
        "        attend(*inputs, backend='triton')\n"
        "    except ImportError as error:\n"
        "        print(error)"
    )
    expression = 'backend="triton" needs the package triton, which is not installed. Use backend="torch" instead.'
    assert message.splitlines() == [expression, expression]
