"""Training: recipes, optimisers, the loop and its checkpoints."""
