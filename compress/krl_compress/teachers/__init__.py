"""Teachers: loading, storing and fusing what a student learns from."""
