"""I/O binding of ONNX Runtime: inputs and outputs stay in memory of the device from call to call.

``session.run`` allocates memory on the GPU for each input of each call. Here each thread's inputs are written into the
same memory again while their shapes stay. Not measured: no GPU has run this yet; the tests run it on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Bindings"]


class Bindings:
    """The bindings of one session, each used by one thread at a time.

    Args:
        session: The session.
        kind: ``"cuda"``, or ``"cpu"``.
        device: Number of the device, from 0.
    """

    def __init__(self, session: Any, kind: str, device: int) -> None:
        self._session, self._kind, self._device = session, kind, device
        self._idle: list[tuple[Any, dict[str, Any]]] = []  # appending to and popping from a list is atomic

    def run(self, outputs: Sequence[str], inputs: Mapping[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
        """Run the session once.

        Args:
            outputs: Names of the outputs.
            inputs: Arrays by name.

        Returns:
            The outputs, in memory of the caller.
        """
        try:
            binding, kept = self._idle.pop()
        except IndexError:
            binding, kept = self._session.io_binding(), {}
        for name, array in inputs.items():
            self._put(binding, kept, name, array)
        binding.clear_binding_outputs()  # their shapes may be others than before
        for name in outputs:
            binding.bind_output(name, self._kind, self._device)
        self._session.run_with_iobinding(binding)
        made: list[npt.NDArray[Any]] = binding.copy_outputs_to_cpu()
        self._idle.append((binding, kept))  # one that failed is thrown away
        return made

    def _put(self, binding: Any, kept: dict[str, Any], name: str, array: npt.NDArray[Any]) -> None:
        value = kept.get(name)
        same = value is not None and value.shape() == list(array.shape)
        if value is not None and same:
            value.update_inplace(array)
            return
        ort = import_module("onnxruntime")
        kept[name] = ort.OrtValue.ortvalue_from_numpy(array, self._kind, self._device)
        binding.bind_ortvalue_input(name, kept[name])
