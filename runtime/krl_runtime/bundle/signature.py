"""The signature of a bundle's manifest: Ed25519 (RFC 8032) over the bytes of ``manifest.json``, 64 bytes in a file.

The manifest has the hash of every other file, so that one signature covers all of them. OpenSSL checks it as well::

    openssl pkeyutl -verify -pubin -inkey KEY -rawin -in manifest.json -sigfile manifest.sig
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krl_runtime.errors import BundleError, UsageError, require
from krl_runtime.files import write_atomic

from .names import MANIFEST, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["check_signature", "is_signed", "sign_manifest"]

_SIGNATURE_BYTES = 64  # of Ed25519
_MAX_KEY_BYTES = 1 << 16  # a key file has some hundred bytes
_MAKE_KEY = "ssh-keygen -t ed25519 -f krl-key makes krl-key, the private one, and krl-key.pub"


def is_signed(folder: Path) -> bool:
    """Return whether a bundle has a signature, valid or not."""
    return (folder / SIGNATURE).is_file()


def sign_manifest(folder: Path, key: Path, password: bytes | None = None) -> str:
    """Sign a bundle's manifest, and return the public key in OpenSSH's form.

    Args:
        folder: The bundle.
        key: File of an Ed25519 private key: PEM (PKCS #8), or OpenSSH's.
        password: The password of the key, if it has one.

    Raises:
        UsageError: The key cannot be used.
        MissingExtraError: The library ``cryptography`` is not installed.
    """
    private = _private_key(key, password)
    write_atomic(folder / SIGNATURE, private.sign((folder / MANIFEST).read_bytes()))
    return _openssh(private.public_key())


def check_signature(folder: Path, manifest: bytes, keys: Sequence[Path]) -> str:
    """Check that a manifest is signed by one of the trusted keys; return that key in OpenSSH's form.

    Args:
        folder: The bundle.
        manifest: The bytes of its manifest, which are used afterwards.
        keys: Files of Ed25519 public keys: PEM, or a line in OpenSSH's form.

    Raises:
        BundleError: There is no signature, or none by these keys.
        UsageError: A key cannot be used.
        MissingExtraError: The library ``cryptography`` is not installed.
    """
    public = [_public_key(key) for key in keys]
    path, shown = folder / SIGNATURE, ", ".join(map(str, keys))
    try:
        with path.open("rb") as file:
            signature = file.read(_SIGNATURE_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError(
            f"bundle {folder} is not signed, and {shown} is to be trusted alone; accepted: a bundle signed with "
            f"krl-deploy sign {folder} --key PRIVATE_KEY"
        ) from error
    from cryptography.exceptions import InvalidSignature

    for key in public:
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            continue
        return _openssh(key)
    raise BundleError(
        f"bundle {folder} is not signed by {shown}: {SIGNATURE} is by another key, or the manifest was changed after "
        "it was signed; get the bundle from its maker again, or give the right key"
    )


def _openssh(key: Ed25519PublicKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _private_key(path: Path, password: bytes | None) -> Ed25519PrivateKey:
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    def load(data: bytes) -> Any:
        openssh = b"BEGIN OPENSSH PRIVATE KEY" in data
        read = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        return read(data, password)

    key = _load(path, load, "private")
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_kind(path, key, "private")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    serialization = _library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    def load(data: bytes) -> Any:
        pem = b"BEGIN PUBLIC KEY" in data
        return serialization.load_pem_public_key(data) if pem else serialization.load_ssh_public_key(data.strip())

    key = _load(path, load, "public")
    if not isinstance(key, Ed25519PublicKey):
        raise _other_kind(path, key, "public")
    return key


def _load(path: Path, load: Callable[[bytes], Any], name: str) -> Any:
    """Return a key of a file.

    Raises:
        UsageError: The file cannot be read, or has no such key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the {name} key {path} cannot be read ({error.strerror}); {_MAKE_KEY}") from error
    if len(data) > _MAX_KEY_BYTES:
        raise UsageError(f"{path} has more than {_MAX_KEY_BYTES} bytes, which no key has; {_MAKE_KEY}")
    try:
        return load(data)
    except Exception as error:  # the library raises many types, also for a missing or wrong password
        raise UsageError(
            f"{path} is no {name} key that can be read ({' '.join(str(error).split())}); accepted: an Ed25519 key in "
            f"PEM or in OpenSSH's form; {_MAKE_KEY}"
        ) from error


def _other_kind(path: Path, key: object, name: str) -> UsageError:
    return UsageError(f"{path} is a {type(key).__name__}; accepted: an Ed25519 {name} key; {_MAKE_KEY}")


def _library() -> Any:
    return require("cryptography.hazmat.primitives.serialization", extra="sign", purpose="signing and checking bundles")
