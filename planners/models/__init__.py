"""Models for planners: references, checkpoints, architecture."""
