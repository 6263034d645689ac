"""A warm start: the model runs at once on an available backend while another process builds TensorRT's engine."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, Literal

from krl_runtime.bundle import Bundle, Engine
from krl_runtime.bundle.golden import golden_arrays
from krl_runtime.errors import BackendError, BundleError, MissingExtraError, distribution
from krl_runtime.evaluation.golden import compare, device_limits

from .base import Backend, ImageSizes, check_not_forked
from .build_lock import build_lock
from .cuda import current_gpu
from .replay import replay
from .select import SelectedBackend, choose_variant, open_backend
from .tensorrt.library import tensorrt_library
from .tensorrt.registry import BuiltEngine, find_engine, register_engine, registry_folder

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["WarmStart", "warm_start"]

_log = logging.getLogger("krl")

_TAIL = 400  # last characters of a failed build's output, where its reason is
_LOOK = 5.0  # seconds between signs of life to processes that wait for this build
_PATIENCE = 5.0  # seconds that a build gets to end by itself before it is killed


@dataclass
class _Lease:
    """A selected backend, the calls that are on it now, and whether new ones go elsewhere."""

    selected: SelectedBackend
    users: int = 0
    retired: bool = False


def warm_start(
    bundle: Bundle, first: SelectedBackend, variant: str | None, command: Sequence[str] | None, batch: int = 1
) -> SelectedBackend | WarmStart:
    """Begin to build an engine in the background, if one can be built here.

    Args:
        bundle: The bundle.
        first: The backend that runs meanwhile.
        variant: The variant to build; ``None`` takes the bundle's default for TensorRT.
        command: Command that builds it and registers it in the bundle; ``None`` means ``krl-deploy build-engine``.
        batch: Largest batch of the engine that ``krl-deploy build-engine`` makes, 1 or more.

    Returns:
        A ``WarmStart``; or ``first`` with the cause in its reason if nothing is built.
    """
    if first.name in ("tensorrt", "tensorrt-rtx"):
        return first
    variant = variant or choose_variant(bundle, "tensorrt")[0]
    try:
        tensorrt_library()
        current_gpu()
        golden = golden_arrays(bundle)
        if command is None and find_spec("krl_deploy") is None:
            raise BackendError(
                f"krl-deploy, which builds it, is not installed; install krl with its extra deploy "
                f"in place of {distribution()}"
            )
    except (BackendError, BundleError) as error:
        return replace(first, reason=f"{first.reason}; no engine is built in the background: {error}")
    default = [sys.executable, "-m", "krl_deploy", "build-engine", str(bundle.path), "--precision", variant]
    if batch > 1 and not isinstance(bundle.manifest.inputs[0].shape[0], int):
        default += ["--profile", f"1,{batch},{batch}"]
    return WarmStart(bundle, first, variant, golden, default if command is None else command)


class WarmStart:
    """A ``SelectedBackend`` that changes once: to the engine, when that is built and has passed.

    A call runs from beginning to end on one backend. The old one is closed when the last call on it is done. If the
    build or the golden inputs fail, the old one stays, and ``reason`` has the cause.

    Attributes:
        state: ``"building"``, ``"done"``, ``"failed"`` or ``"closed"``.
    """

    def __init__(
        self,
        bundle: Bundle,
        first: SelectedBackend,
        variant: str,
        golden: Mapping[str, npt.NDArray[Any]],
        command: Sequence[str],
    ) -> None:
        """Start the build; see ``warm_start`` for the arguments."""
        self._bundle, self._variant, self._golden, self._command = bundle, variant, golden, command
        self._lock, self._made_by = Lock(), os.getpid()
        self._lease = _Lease(first)
        self._process: subprocess.Popen[bytes] | None = None
        self._cause = ""
        self.state: Literal["building", "done", "failed", "closed"] = "building"
        self._thread = Thread(target=self._work, name="krl-warm-start", daemon=True)
        self._thread.start()

    @property
    def backend(self) -> Backend:
        """Return the backend that runs the graph now."""
        return self._lease.selected.backend

    @property
    def name(self) -> str:
        """The name of what runs now."""
        return self._lease.selected.name

    @property
    def variant(self) -> str:
        """The variant that runs now."""
        return self._lease.selected.variant

    @property
    def image_sizes(self) -> ImageSizes | None:
        """Sizes of images that run now; see ``Backend.image_sizes``."""
        return self._lease.selected.image_sizes

    @property
    def skipped(self) -> Mapping[str, str]:
        """The causes by kind of backend."""
        return self._lease.selected.skipped

    @property
    def reason(self) -> str:
        """Return the backend that runs now and the reason, and the state of the build."""
        reason = self._lease.selected.reason
        if self.state == "building":
            return f"{reason}; an engine for variant {self._variant} is being built in the background"
        return f"{reason}; the engine built in the background is not used: {self._cause}" if self._cause else reason

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Run the graph once, on the current backend; see ``Backend.run``."""
        check_not_forked(self._made_by, "a model")
        with self._leased() as selected:
            return selected.run(inputs)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the build has ended, also in failure; return whether it has.

        Args:
            timeout: Seconds to wait at most.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop the build and free the backend's resources; a later run raises ``BackendError``."""
        if os.getpid() != self._made_by:  # forked: the lock, the build and the backend belong to another process
            return
        with self._lock:
            self.state = "closed"
            process = self._process
        if process is not None:
            _stop(process)
        self._thread.join()
        self._lease.selected.close()

    @contextmanager
    def _leased(self) -> Iterator[SelectedBackend]:
        with self._lock:
            lease = self._lease
            lease.users += 1
        try:
            yield lease.selected
        finally:
            with self._lock:
                lease.users -= 1
                last = lease.retired and not lease.users
            if last:
                lease.selected.close()

    def _work(self) -> None:
        begin = time.monotonic()
        try:
            self._build()
            opened = self._open()
        except (BackendError, BundleError, MissingExtraError, OSError) as error:
            self._fail(str(error))
        except Exception as error:  # a thread has no caller to raise to
            self._fail(f"{type(error).__name__}: {error}")
        else:
            seconds = time.monotonic() - begin
            why = f"built in the background in {seconds:.0f} s, its golden outputs passed"
            self._swap(SelectedBackend(opened, self._variant, f"tensorrt runs variant {self._variant} ({why})", {}))

    def _build(self) -> None:
        """Run the command to its end, once no other process of this user builds.

        Raises:
            BackendError: It failed, or this was closed.
        """
        with build_lock(registry_folder().parent / "build.lock", lambda: self.state == "closed") as alive:
            if not self._new_engines(Bundle.open(self._bundle.path)):  # else another process has built it meanwhile
                self._run(alive)

    def _run(self, alive: Callable[[], None]) -> None:
        # A file, not a pipe: if this process ends first, the build continues, and the next start finds the engine.
        with tempfile.TemporaryFile() as log:
            with self._lock:
                if self.state == "closed":
                    raise BackendError("the model was closed")
                self._process = subprocess.Popen(
                    list(self._command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
                )
            while (code := self._process.poll()) is None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_LOOK)
                alive()
            if code:
                log.seek(0)
                said = " ".join(log.read().decode(errors="replace").split())[-_TAIL:]
                raise BackendError(f"the build ended with exit code {code}: {said or 'it said nothing'}")

    def _open(self) -> Backend:
        """Open the new engine, and check it on the golden inputs.

        Raises:
            BackendError: It cannot be opened, or its outputs differ from the golden ones.
        """
        bundle = Bundle.open(self._bundle.path)  # its signature, if it had one, may be gone: the engine is built here
        self._register(bundle)
        opened, _ = open_backend("tensorrt", bundle, self._variant)
        try:
            limits = device_limits(bundle.manifest, self._variant, tf32=True)
            _, _, cause = compare(bundle.manifest, limits, replay(bundle, opened, self._golden), self._golden)
            if cause:
                raise BackendError(f"it fails the golden inputs: {cause}")
        except BaseException:
            opened.close()
            raise
        return opened

    def _register(self, bundle: Bundle) -> None:
        """Enter new engines of the variant in the registry: the command that built them was given by the program."""
        for key, engine in self._new_engines(bundle).items():
            sha256 = bundle.engine_entry(key).sha256
            if find_engine(sha256) is None:
                register_engine(BuiltEngine(sha256, engine.library, engine.version, engine.version_compatible))

    def _new_engines(self, bundle: Bundle) -> dict[str, Engine]:
        """Return the engines of the variant that were not there when this began."""
        return {
            key: engine
            for key, engine in bundle.engines.items()
            if engine.variant == self._variant and key not in self._bundle.engines
        }

    def _swap(self, selected: SelectedBackend) -> None:
        with self._lock:
            closed = self.state == "closed"
            if not closed:
                old, self._lease, self.state = self._lease, _Lease(selected), "done"
                old.retired, idle = True, not old.users
        if closed:
            selected.close()
            return
        if idle:
            old.selected.close()
        _log.info("%s: %s", self._bundle.manifest.name, selected.reason)

    def _fail(self, cause: str) -> None:
        with self._lock:
            if self.state == "closed":
                return
            self.state, self._cause = "failed", cause
        _log.warning("%s: %s", self._bundle.manifest.name, self.reason)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
