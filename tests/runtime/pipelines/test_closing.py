"""Closing a model frees its session: a program that loads models in turn must not grow."""

import gc
import weakref
from pathlib import Path

import pytest

from _helpers.image_nets import write_generator, write_restorer
from krl_runtime import BackendError, Bundle, load


@pytest.fixture(params=["classifier", "restorer", "generator"])
def any_bundle(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Bundle:
    makers = {"restorer": write_restorer, "generator": write_generator}
    maker = makers.get(request.param)
    return bundle if maker is None else maker(tmp_path / "a.krl")


def test_the_session_is_freed_although_the_model_is_kept(any_bundle: Bundle):
    model = load(any_bundle.path, threads=1)
    session = weakref.ref(model.backend.backend._session)
    assert session() is not None
    model.close()
    gc.collect()
    assert session() is None
    golden = any_bundle.golden()
    with pytest.raises(BackendError, match="is closed"):
        model.backend.run({spec.name: golden[spec.name] for spec in any_bundle.manifest.inputs})


def test_with_frees_it_also_after_an_error(any_bundle: Bundle):
    sessions = []

    def fail() -> None:
        with load(any_bundle.path, threads=1) as model:
            sessions.append(weakref.ref(model.backend.backend._session))
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError, match="planned"):
        fail()
    gc.collect()
    assert sessions[0]() is None
