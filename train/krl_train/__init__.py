"""Training of teachers: data to a run."""
