"""Models on the Hugging Face Hub: download and upload of model folders."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def is_repository(name: str) -> bool:
    """Whether a string has the form "owner/name" of a repository, and not that of a file."""
    return _REPOSITORY.fullmatch(name) is not None and not name.endswith(".safetensors")


def download(repository: str, revision: str | None, files: Sequence[str]) -> Path:
    """Download files of a repository into the hub's cache, unless they are there; return their folder.

    Raises:
        FileNotFoundError: The repository or revision does not exist or cannot be reached, and is not in the cache.
        ImportError: huggingface_hub is not installed.
    """
    missing = f"There is no file or folder {repository}"
    hub = import_hub(f"{missing}, and loading it from the Hugging Face Hub")
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except hub.errors.RevisionNotFoundError as error:
        reason, cause = f"its repository has no revision {revision}", error
    except hub.errors.RepositoryNotFoundError as error:
        reason, cause = "it has no such repository, or a private one that the account may not read", error
    except (OSError, ValueError, hub.errors.HTTPError) as error:
        reason, cause = f"the hub cannot be reached ({error.__cause__ or error})", error
    raise FileNotFoundError(
        f"{missing}, and the Hugging Face Hub gives no model of this name: {reason}; the cache "
        f"{hub.constants.HF_HUB_CACHE} does not have it either."
    ) from cause


def import_hub(what: str) -> Any:
    """The module huggingface_hub; ImportError with the command that installs it if it is missing."""
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"{what} needs huggingface_hub, which cannot be imported ({error}). "
            "Install it with: pip install 'cmsa_fast[hub]'"
        ) from error
