"""Boards that are reached over SSH: any command runs there on files of this machine, and its results come back."""
