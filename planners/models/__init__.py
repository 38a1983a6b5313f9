"""Models as the planner sees them: references, checkpoints, architecture."""
