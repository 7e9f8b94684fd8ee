"""Files, processes and devices; nothing in this package knows about images or models."""
