"""huggingface_hub is loaded only when a model is looked for on the hub, and named where it is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cmsa_fast.hub import push_to_hub
from cmsa_fast.models.checkpoint import load_pretrained


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"no file or folder someone/small,.*pip install 'cmsa_fast\[hub\]'"):
        load_pretrained("someone/small")
    with pytest.raises(ImportError, match=r"Uploading a model needs huggingface_hub.*'cmsa_fast\[hub\]'"):
        push_to_hub("demo", "someone/small")
    assert load_pretrained("demo")


def test_the_demo_is_loaded_without_the_library() -> None:
    code = (
        "import sys; from cmsa_fast.models.checkpoint import load_pretrained; load_pretrained('demo'); "
        "sys.exit('huggingface_hub' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
