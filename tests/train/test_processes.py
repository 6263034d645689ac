"""The end of a command that several processes ran."""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from krl_train.processes import leave_group


def test_a_group_is_left_at_the_end_but_not_after_a_failure(tmp_path: Path) -> None:
    assert leave_group(0) == 0  # without a group there is nothing to leave
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        assert leave_group(2) == 2
        assert dist.is_initialized()
        assert leave_group(0) == 0
        assert not dist.is_initialized()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
