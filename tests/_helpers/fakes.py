"""A stand-in for onnxruntime-gpu on machines without a GPU: what it does was observed on the real one."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime
import pytest

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
FALLBACK_REFUSED = (
    "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU EP, but "
    "fallback to CPU EP has been explicitly disabled by the user."
)


class FakeSession:
    """A session that computes on the CPU, whatever it says."""

    def __init__(self, providers: list[str], left: tuple[str, ...], *arguments: Any) -> None:
        self._real = onnxruntime.InferenceSession(*arguments, providers=[CPU])
        self._providers, self._left = providers, left

    def io_binding(self) -> Any:
        return _Binding(self._real.io_binding())

    def run_with_iobinding(self, binding: Any) -> None:
        self._real.run_with_iobinding(binding.real)

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [SimpleNamespace(op_type=name) for name in self._left]
        conv = [SimpleNamespace(op_type="Conv")]
        return [
            SimpleNamespace(ep_name=CUDA, get_nodes=lambda: conv),
            SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes),
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Binding:
    """A binding whose memory of the GPU is that of the CPU."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def bind_output(self, name: str, kind: str, device: int) -> None:
        assert kind == "cuda"
        self.real.bind_output(name, "cpu", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def fake_gpu_runtime(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    works: bool = True,
    left_on_cpu: tuple[str, ...] = (),
    preload: str = "",
    ignores_strictness: bool = False,
) -> ModuleType:
    """Put a module ``onnxruntime`` in place that has a CUDA provider.

    Args:
        monkeypatch: Undoes it.
        folder: Where the module's libraries would be.
        works: Whether CUDA can start; if not, sessions land on the CPU in silence, as the real one's do.
        left_on_cpu: Operators of nodes that stay on the CPU although CUDA works.
        preload: What ``preload_dlls`` prints.
        ignores_strictness: Whether the session ignores ``disable_cpu_ep_fallback``.
    """
    module = ModuleType("onnxruntime")
    module.__version__ = "1.99.0"
    module.__file__ = str(folder / "__init__.py")
    module.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
    module.get_available_providers = lambda: [CUDA, CPU]
    module.preload_dlls = lambda: print(preload)

    class SessionOptions(onnxruntime.SessionOptions):
        def __init__(self) -> None:
            super().__init__()
            self.entries: dict[str, str] = {}

        def add_session_config_entry(self, key: str, value: str) -> None:
            self.entries[key] = value

    def session(
        model: Any, options: Any, providers: list[Any], enable_fallback: int, disabled_optimizers: list[str]
    ) -> FakeSession:
        assert enable_fallback == 0
        assert disabled_optimizers == ["WeightBiasQuantization"]
        strict = options.entries.get("session.disable_cpu_ep_fallback") == "1" and not ignores_strictness
        if providers == [CPU]:
            return FakeSession([CPU], (), model)
        assert providers[0][0] == CUDA
        module.devices.append(providers[0][1]["device_id"])
        if strict and (not works or left_on_cpu):
            raise RuntimeError(FALLBACK_REFUSED)
        return FakeSession([CUDA, CPU] if works else [CPU], left_on_cpu, model)

    class OrtValue:
        @staticmethod
        def ortvalue_from_numpy(array: Any, kind: str, device: int) -> Any:
            assert kind == "cuda"
            module.copies += 1
            return onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), "cpu", 0)

    module.OrtValue = OrtValue
    module.copies, module.devices = 0, []
    module.SessionOptions = SessionOptions
    module.InferenceSession = session
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", module)
    return module
