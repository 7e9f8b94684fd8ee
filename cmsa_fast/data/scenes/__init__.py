"""Synthetic scenes of coloured shapes with expressions that refer to one of them."""
