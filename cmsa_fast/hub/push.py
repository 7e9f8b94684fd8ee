"""Writing the folder that is shared, and uploading it to the Hugging Face Hub."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import torch

from .. import __version__
from ..models.checkpoint import CARD, WEIGHTS, load_model, locate, save_pretrained, write_config
from ..models.hub import import_hub, is_repository
from ..system.files import staged
from .card import model_card

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push_to_hub(
    source: str | Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model folder with a model card, and upload it to a repository, which is created if need be.

    Args:
        source: As for `models.checkpoint.load_pretrained`.
        repository: "owner/name".
        private: Only for accounts that may read the repository; an existing public repository is then refused.
        license: As for `write_model_folder`.
        dtype: As for `write_model_folder`.

    Returns:
        The address of the repository.

    Raises:
        ImportError: huggingface_hub is not installed.
        OSError: The hub cannot be reached, or the account may not write to the repository.
        FileNotFoundError, ValueError: As for `write_model_folder`, or `repository` is not of that form.
    """
    if not is_repository(repository):
        raise ValueError(f"repository must be owner/name; got {repository!r}.")
    hub = import_hub("Uploading a model")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model_folder(source, folder, name=repository, license=license, dtype=dtype)
        api = hub.HfApi(library_name="cmsa_fast", library_version=__version__)
        try:
            # None: public, unless the organisation has another default.
            api.create_repo(repository, private=private or None, exist_ok=True)
            if private and not api.repo_info(repository).private:
                raise ValueError(
                    f"{repository} exists and is public; make it private on the hub, then push again."
                )
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"Upload of cmsa_fast {__version__}"
            )
        except (OSError, hub.errors.HTTPError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise OSError(
                f"{source} was not uploaded to {repository}, which needs the internet and an account that may "
                f"write there (`hf auth login`, or a token in HF_TOKEN): {reason}."
            ) from error
    return f"{api.endpoint}/{repository}"


def write_model_folder(
    source: str | Path,
    folder: str | Path,
    *,
    name: str,
    license: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model folder with a model card, README.md, made from the files of the run.

    A README.md that the folder `source` already has is copied instead.

    Args:
        source: As for `models.checkpoint.load_pretrained`; a run folder has what the card tells of training.
        folder: Must be empty or not exist.
        name: How the model is called in the card: the repository that it is meant for.
        license: Licence of the weights as the hub writes it: "mit", "cc-by-4.0", ... None: not stated, as the card
            then says.
        dtype: Type in which the weights are stored. None: the file of the weights is copied.

    Raises:
        FileExistsError: `folder` is not empty.
        FileNotFoundError, ImportError: As for `models.checkpoint.load_pretrained`.
        ValueError: The source or a file of its run is damaged, `license` is not the name of a licence or cannot be
            added to the card, or a weight is not finite in `dtype`.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        raise ValueError(f"license must be written as on the hub, such as mit or cc-by-4.0; got {license!r}.")
    folder, path = Path(folder), locate(source)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"folder must be empty or not exist; {folder} does not fit.")
    card = path / CARD if path.is_dir() else None
    if card is not None and card.is_file() and license is not None:
        raise ValueError(f"license must be written into {card}, which becomes the model card as it is.")
    model, config = load_model(path)
    weights = path / WEIGHTS if path.is_dir() else path
    with staged(folder) as written:
        if dtype is None:
            write_config(written, config)
            shutil.copyfile(weights, written / WEIGHTS)
        else:
            save_pretrained(written, model, config, dtype)
        if card is not None and card.is_file():
            shutil.copyfile(card, written / CARD)
        else:
            text = model_card(name, model, config, weights, license=license, dtype=dtype)
            (written / CARD).write_text(text, encoding="utf-8")
