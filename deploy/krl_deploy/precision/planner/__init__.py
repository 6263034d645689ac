"""The planner of mixed precision: from a model that loses accuracy to the layers that must keep their precision."""
