"""Sharing models on the Hugging Face Hub: model folders with a model card, and their upload."""

from .push import push_to_hub, write_model_folder

__all__ = ["push_to_hub", "write_model_folder"]
