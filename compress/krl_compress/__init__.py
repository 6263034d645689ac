"""Compression: teacher run to student run.

``losses`` are functions of tensors; ``teachers`` loads, stores and fuses what a student learns from; ``distillers``
makes objectives of both; ``distillation`` goes from a configuration to a finished student; ``studies`` compares
methods.
"""
