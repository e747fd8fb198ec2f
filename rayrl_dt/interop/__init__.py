"""Policies as files: our bundle, and Hugging Face checkpoints."""
