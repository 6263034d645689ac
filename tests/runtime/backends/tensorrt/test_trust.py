"""An engine is code: it runs if this user built it here, or if a trusted key signed its bundle."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from _helpers.bundles import add_engines, write_bundle
from _helpers.fake_cuda import GPU_NAME
from _helpers.fake_tensorrt import faked
from _helpers.tensorrt_bindings import GENERATIONS
from krl_deploy.bundles.sign import SignConfig, sign
from krl_deploy.tensorrt.config import BuildEngineConfig
from krl_deploy.tensorrt.engines import build_engine
from krl_runtime import load
from krl_runtime.backends.cuda import platform_key
from krl_runtime.backends.tensorrt.engines import open_engine
from krl_runtime.backends.tensorrt.registry import registry_folder
from krl_runtime.bundle import Bundle, Engine
from krl_runtime.errors import BackendError
from krl_runtime.files import sha256_file

newest = faked(GENERATIONS[-1])
NOT_OURS = "was not built by this user on this machine"


@pytest.fixture(autouse=True)
def _own_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def with_engine(path, trt, *, registered, **changes):
    """A bundle whose manifest lists an engine that fits this machine."""
    bundle = write_bundle(path)
    file = bundle.manifest.variants["fp32"].file
    engine = Engine(
        "engines/a.engine", "fp32", bundle.manifest.files[file].sha256, trt.version, ("9.0",), GPU_NAME,
        platform_key(), ((1, 4, 8),),
    )  # fmt: skip
    plan = trt.plan(bundle.file(file).read_bytes(), [{"pixels": [[n, 3, 12, 10] for n in (1, 4, 8)]}])
    plans, engines = {engine.file: plan}, {"a": replace(engine, **changes)}
    return add_engines(bundle, plans, engines) if registered else bundle.update(plans, engines=engines)


def key_pair(folder):
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "key.pub.pem"
    plain = serialization.NoEncryption()
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


def loads(trt):
    return trt.calls["Runtime.deserialize_cuda_engine"]


def test_an_engine_of_a_manifest_alone_is_not_loaded(tmp_path, newest):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=False)
    with pytest.raises(BackendError, match=NOT_OURS):
        open_engine(bundle, "fp32")
    with load(bundle.path) as model:
        assert model.backend.name != "tensorrt"
        assert NOT_OURS in model.backend.skipped["tensorrt"]
    assert loads(newest) == 0


def test_an_engine_that_was_built_here_is(tmp_path, newest):
    bundle = write_bundle(tmp_path / "m.krl")
    build_engine(BuildEngineConfig(bundle.path, precision="fp32", profile="1,4,8"))
    with load(bundle.path, require="tensorrt") as model:
        golden = model.bundle.golden()
        made = model.backend.run({"pixels": golden["pixels"]})["logits"]
    np.testing.assert_allclose(made, golden["logits"], atol=1e-4)
    shutil.copytree(bundle.path, tmp_path / "copy.krl")
    load(tmp_path / "copy.krl", require="tensorrt").close()  # the registry knows the bytes, wherever they are
    shutil.rmtree(registry_folder())  # another user, or another machine
    with pytest.raises(BackendError, match=NOT_OURS):
        load(bundle.path, require="tensorrt")


def test_an_engine_that_was_exchanged_with_its_manifest_is_not_loaded(tmp_path, newest):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=True)
    load(bundle.path, require="tensorrt").close()
    engine = bundle.manifest.engines["a"]
    changed = bundle.file(engine.file).read_bytes() + b" "
    bundle.update({engine.file: changed}, engines={"a": engine})
    before = loads(newest)
    with pytest.raises(BackendError, match=NOT_OURS):
        load(bundle.path, require="tensorrt")
    assert loads(newest) == before


def test_the_registry_is_the_users_alone(tmp_path, newest):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=True)
    (entry,) = registry_folder().iterdir()
    assert entry.stat().st_mode & 0o777 == 0o600
    assert entry.parent.stat().st_mode & 0o077 == 0
    assert entry.stem == sha256_file(bundle.file("engines/a.engine"))
    for path, mode in ((entry, 0o620), (entry, 0o602), (entry.parent, 0o770)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        with pytest.raises(BackendError, match=NOT_OURS):
            open_engine(bundle, "fp32")
        path.chmod(before)
    open_engine(bundle, "fp32").close()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"[" * 5000, b"\xff", b'{"sha256": "x", "library": "tensorrt"}']
)
def test_a_damaged_entry_is_none(tmp_path, newest, content):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=True)
    (entry,) = registry_folder().iterdir()
    entry.write_bytes(content)
    with pytest.raises(BackendError, match=NOT_OURS):
        open_engine(bundle, "fp32")


def test_an_entry_of_another_engine_does_not_count(tmp_path, newest):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=True)
    (entry,) = registry_folder().iterdir()
    entry.write_bytes(entry.read_bytes().replace(entry.stem.encode(), b"0" * 64))
    with pytest.raises(BackendError, match=NOT_OURS):
        open_engine(bundle, "fp32")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="changing the owner of a file needs root")
def test_an_entry_of_somebody_else_does_not_count(tmp_path, newest, monkeypatch):
    bundle = with_engine(tmp_path / "m.krl", newest, registered=True)
    (entry,) = registry_folder().iterdir()
    os.chown(entry, 12345, -1)
    with pytest.raises(BackendError, match=NOT_OURS):
        open_engine(bundle, "fp32")


def test_a_signature_by_a_trusted_key_is_enough(tmp_path, newest):
    private, public = key_pair(tmp_path)
    bundle = with_engine(tmp_path / "m.krl", newest, registered=False)
    sign(SignConfig(bundle.path, private))
    load(bundle.path, trust=public, require="tensorrt").close()
    with pytest.raises(BackendError, match=NOT_OURS):
        load(bundle.path, require="tensorrt")  # a signature that nobody was asked to trust


def test_a_manifest_does_not_switch_on_host_code(tmp_path, newest):
    """A version-compatible engine brings its own runtime; even a signature is of the manifest's words alone."""
    private, public = key_pair(tmp_path)
    bundle = with_engine(tmp_path / "m.krl", newest, registered=False, version_compatible=True)
    sign(SignConfig(bundle.path, private))
    with pytest.raises(BackendError, match="brings host code"):
        load(bundle.path, trust=public, require="tensorrt")
    assert loads(newest) == 0
    # A registered engine that was built without host code, and a manifest that claims the contrary.
    other = with_engine(tmp_path / "other.krl", newest, registered=True)
    claimed = replace(other.manifest.engines["a"], version_compatible=True)
    plan = other.file(claimed.file).read_bytes()
    other.update({claimed.file: plan}, engines={"a": claimed})
    with pytest.raises(BackendError, match="brings host code"):
        load(other.path, require="tensorrt")


def test_an_engine_with_host_code_runs_where_it_was_built(tmp_path, newest):
    bundle = write_bundle(tmp_path / "m.krl")
    build_engine(BuildEngineConfig(bundle.path, precision="fp32", profile="1,4,8", version_compatible=True))
    load(bundle.path, require="tensorrt").close()


def test_a_signed_bundle_stays_as_it_was_shipped(tmp_path, newest):
    private, public = key_pair(tmp_path)
    bundle = write_bundle(tmp_path / "m.krl")
    sign(SignConfig(bundle.path, private))
    before = {path.name: sha256_file(path) for path in bundle.path.rglob("*") if path.is_file()}
    found, _ = build_engine(BuildEngineConfig(bundle.path, precision="fp32", profile="1,4,8"))
    assert {path.name: sha256_file(path) for path in bundle.path.rglob("*") if path.is_file()} == before
    assert (tmp_path / "m.krl.device" / "engines" / f"{found['engine']}.engine").is_file()
    with load(bundle.path, trust=public, require="tensorrt") as model:
        assert list(model.bundle.engines) == [found["engine"]]
        assert not model.bundle.manifest.engines
    shutil.rmtree(registry_folder())
    with pytest.raises(BackendError, match=NOT_OURS):  # the signature is not of what lies beside the bundle
        load(bundle.path, trust=public, require="tensorrt")


def test_what_lies_beside_a_bundle_is_checked(tmp_path, newest, caplog):
    private, _ = key_pair(tmp_path)
    bundle = write_bundle(tmp_path / "m.krl")
    sign(SignConfig(bundle.path, private))
    found, _ = build_engine(BuildEngineConfig(bundle.path, precision="fp32", profile="1,4,8"))
    folder = tmp_path / "m.krl.device"
    plan = folder / "engines" / f"{found['engine']}.engine"
    data = plan.read_bytes()
    plan.write_bytes(data + b"x")
    with pytest.raises(Exception, match="is damaged or was changed"):
        open_engine(Bundle.open(bundle.path), "fp32")
    plan.write_bytes(data)
    index = folder / "engines.json"
    good = index.read_bytes()
    for bad in (b"", b"{}", good.replace(b'"fp32"', b'"int8"'), good.replace(b"engines/fp32", b"../../fp32")):
        index.write_bytes(bad)
        caplog.clear()
        assert not Bundle.open(bundle.path).engines
        assert "are skipped" in caplog.text
    index.write_bytes(good)
    open_engine(Bundle.open(bundle.path), "fp32").close()


def test_a_folder_for_what_a_device_adds(tmp_path, newest, monkeypatch):
    private, _ = key_pair(tmp_path)
    bundle = write_bundle(tmp_path / "m.krl")
    sign(SignConfig(bundle.path, private))
    monkeypatch.setenv("KRL_CACHE_DIR", str(tmp_path / "cache"))
    build_engine(BuildEngineConfig(bundle.path, precision="fp32", profile="1,4,8"))
    assert not (tmp_path / "m.krl.device").exists()
    load(bundle.path, require="tensorrt").close()
