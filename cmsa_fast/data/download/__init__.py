"""Download of annotations and images."""
