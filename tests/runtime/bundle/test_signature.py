"""Signatures: OpenSSL and OpenSSH make keys and check what krl signs, and krl checks what OpenSSL signs."""

import shutil
import subprocess

import pytest

from _helpers.bundles import write_bundle
from krl_deploy.bundles.sign import SignConfig, sign
from krl_runtime import load
from krl_runtime.bundle import Bundle
from krl_runtime.cli.program import main
from krl_runtime.errors import BundleError, MissingExtraError, UsageError

pytest.importorskip("cryptography", reason="signatures need cryptography")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
needs_openssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


def shell(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=60)


def openssl_key(folder, name="pem"):
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    shell("openssl", "genpkey", "-algorithm", "ed25519", "-out", private)
    shell("openssl", "pkey", "-in", private, "-pubout", "-out", public)
    return private, public


def openssh_key(folder, name="ssh", password=""):
    private = folder / name
    shell("ssh-keygen", "-q", "-t", "ed25519", "-f", private, "-N", password, "-C", "krl test")
    return private, folder / f"{name}.pub"


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "m.krl", variants=("fp32", "int8"))


@needs_openssl
def test_openssl_checks_what_krl_signs(bundle, tmp_path):
    private, public = openssl_key(tmp_path)
    found = sign(SignConfig(bundle.path, private))
    manifest, signature = bundle.path / "manifest.json", bundle.path / "manifest.sig"
    assert found["digest"] == bundle.manifest.digest
    check = ("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", manifest, "-sigfile")
    assert b"Verified Successfully" in shell(*check, signature).stdout
    with load(bundle.path, trust=public) as model:
        assert model.bundle.trust == (public,)


@needs_openssl
def test_krl_checks_what_openssl_signs(bundle, tmp_path):
    private, public = openssl_key(tmp_path)
    manifest, signature = bundle.path / "manifest.json", bundle.path / "manifest.sig"
    shell("openssl", "pkeyutl", "-sign", "-inkey", private, "-rawin", "-in", manifest, "-out", signature)
    load(bundle.path, trust=str(public)).close()


@needs_openssh
@pytest.mark.parametrize("password", ["", "a long password"])
def test_keys_of_openssh(bundle, tmp_path, monkeypatch, password):
    private, public = openssh_key(tmp_path, password=password)
    if password:
        with pytest.raises(UsageError, match="no private key that can be read"):
            sign(SignConfig(bundle.path, private))
        monkeypatch.setenv("KRL_KEY_PASSWORD", password)
    found = sign(SignConfig(bundle.path, private))
    assert found["public_key"] == " ".join(public.read_text().split()[:2])
    load(bundle.path, trust=[public]).close()


@needs_openssh
def test_one_of_several_keys_is_enough_and_another_one_is_not(bundle, tmp_path):
    private, public = openssh_key(tmp_path)
    _, other = openssh_key(tmp_path, "other")
    sign(SignConfig(bundle.path, private))
    load(bundle.path, trust=(other, public)).close()
    with pytest.raises(BundleError, match=r"is not signed by .*other\.pub"):
        load(bundle.path, trust=other)


@needs_openssh
@pytest.mark.parametrize("fault", ["absent", "empty", "short", "long", "flipped", "of another manifest"])
def test_faulty_signatures(bundle, tmp_path, fault):
    private, public = openssh_key(tmp_path)
    sign(SignConfig(bundle.path, private))
    file = bundle.path / "manifest.sig"
    good = file.read_bytes()
    assert len(good) == 64
    if fault == "absent":
        file.unlink()
    elif fault == "of another manifest":
        other = write_bundle(tmp_path / "other.krl")
        sign(SignConfig(other.path, private))
        file.write_bytes((other.path / "manifest.sig").read_bytes())
    else:
        flipped = bytes([good[0] ^ 1]) + good[1:]
        file.write_bytes({"empty": b"", "short": good[:63], "long": good + b"\0", "flipped": flipped}[fault])
    with pytest.raises(BundleError, match="is not signed"):
        Bundle.open(bundle.path, trust=[public])
    Bundle.open(bundle.path)  # nobody asked for a signature


@needs_openssh
def test_a_manifest_that_is_written_again_is_not_signed(bundle, tmp_path):
    """The digest in a manifest is no secret: whoever changes a bundle writes a new one."""
    private, public = openssh_key(tmp_path)
    sign(SignConfig(bundle.path, private))
    signature = (bundle.path / "manifest.sig").read_bytes()
    bundle.update({}, evidence={"top1": 1.0})
    assert not (bundle.path / "manifest.sig").exists()
    (bundle.path / "manifest.sig").write_bytes(signature)
    with pytest.raises(BundleError, match="the manifest was changed after it was signed"):
        load(bundle.path, trust=public)


@needs_openssh
def test_a_damaged_bundle_is_not_signed(bundle, tmp_path):
    private, _ = openssh_key(tmp_path)
    (bundle.path / "model.int8.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="is damaged or was changed"):
        sign(SignConfig(bundle.path, private))
    assert not (bundle.path / "manifest.sig").exists()


@needs_openssl
@needs_openssh
@pytest.mark.parametrize("fault", ["missing", "folder", "text", "large", "rsa", "swapped"])
def test_faulty_keys(bundle, tmp_path, fault):
    private, public = openssh_key(tmp_path)
    sign(SignConfig(bundle.path, private))
    key = tmp_path / "key"
    if fault == "folder":
        key.mkdir()
    elif fault == "text":
        key.write_text("no key")
    elif fault == "large":
        key.write_bytes(b"-----BEGIN PUBLIC KEY-----" + bytes(1 << 17))
    elif fault == "rsa":
        shell("openssl", "genpkey", "-algorithm", "rsa", "-pkeyopt", "rsa_keygen_bits:2048", "-out", tmp_path / "rsa")
        shell("openssl", "pkey", "-in", tmp_path / "rsa", "-pubout", "-out", key)
    elif fault == "swapped":
        key.write_bytes(private.read_bytes())
    with pytest.raises(UsageError, match=r"ssh-keygen -t ed25519"):
        load(bundle.path, trust=key)
    with pytest.raises(UsageError, match=r"ssh-keygen -t ed25519"):
        sign(SignConfig(bundle.path, public if fault == "swapped" else key))


def test_no_key_is_not_any_key(bundle):
    with pytest.raises(UsageError, match="trust names no key"):
        load(bundle.path, trust=[])


def test_without_the_library_the_message_names_its_extra(bundle, tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module

    def absent(name, *rest):
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match=r"\[sign\]"):
        load(bundle.path, trust=tmp_path / "key.pub")


@needs_openssh
@pytest.mark.parametrize("command", [["info"], ["selftest"], ["bench", "--iterations", "1", "--warmup", "0"]])
def test_commands_take_keys(bundle, tmp_path, capsys, command):
    private, public = openssh_key(tmp_path)
    name, *rest = command
    assert main([name, str(bundle.path), *rest, "--trust", str(public)]) == 2
    assert "is not signed" in capsys.readouterr().err
    sign(SignConfig(bundle.path, private))
    assert main([name, str(bundle.path), *rest, "--trust", str(public)]) == 0
