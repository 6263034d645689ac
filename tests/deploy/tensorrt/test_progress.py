import io
import sys
import threading

import pytest
from rich.console import Console

from krl_deploy.tensorrt import progress as module
from krl_deploy.tensorrt.progress import BuildProgress, run_cancellable


def test_without_a_terminal_nothing_is_shown_and_the_build_goes_on(capsys):
    with BuildProgress() as progress:
        progress.phase_start("Building", None, 2)
        assert progress.step_complete("Building", 0)
        progress.phase_finish("Building")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_each_phase_has_a_bar(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", screen)
    with BuildProgress() as progress:
        progress.phase_start("Building", None, 10)
        progress.phase_start("Tactics", "Building", 4)
        assert progress.step_complete("Tactics", 1)
        bars = {task.description: (task.completed, task.total) for task in progress._bars.tasks}
        assert bars == {"Building": (0, 10), "  Tactics": (2, 4)}
        progress.phase_finish("Tactics")
        progress.phase_finish("Tactics")  # TensorRT may repeat itself; it must not raise into C++
        assert progress.step_complete("never started", 0)
        assert [task.description for task in progress._bars.tasks] == ["Building"]
        assert isinstance(progress._bars.console, Console)


def test_the_first_reason_to_stop_stays():
    progress = BuildProgress()
    assert progress.step_complete("a", 0)
    progress.cancel("it was interrupted")
    progress.cancel("other")
    assert not progress.step_complete("a", 1)
    assert progress.canceled == "it was interrupted"


def test_the_time_limit(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = BuildProgress(time_limit=5)
    now[0] = 105
    assert progress.step_complete("a", 0)
    now[0] = 105.1
    assert not progress.step_complete("a", 1)
    assert progress.canceled == "it took longer than the 5 seconds of --time-limit"


def test_the_work_is_done_in_another_thread_and_its_errors_come_out():
    main = threading.current_thread()
    assert run_cancellable(threading.current_thread, BuildProgress()) is not main
    with pytest.raises(ZeroDivisionError):
        run_cancellable(lambda: 1 // 0, BuildProgress())
