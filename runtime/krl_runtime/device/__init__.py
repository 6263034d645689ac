"""This machine: self-test, benchmark, tuning, doctor and telemetry."""
