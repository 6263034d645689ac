"""``krl-deploy sign``: sign a bundle as it is to be shipped."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from krl_runtime.bundle import Bundle
from krl_runtime.bundle.signature import sign_manifest

__all__ = ["SignConfig", "key_password", "sign"]

_PASSWORD = "KRL_KEY_PASSWORD"  # noqa: S105  the name of the variable


@dataclass(frozen=True)
class SignConfig:
    """Options of ``krl-deploy sign``."""

    bundle: tyro.conf.Positional[Path]
    """The bundle NAME.krl, complete: a later change of it removes the signature."""
    key: Path
    """Private Ed25519 key in PEM or OpenSSH's form, as ssh-keygen -t ed25519 -f krl-key makes it. The password, if it
    has one, is read from the variable KRL_KEY_PASSWORD."""
    json: bool = False
    """Print the result as one JSON object."""


def sign(config: SignConfig) -> dict[str, Any]:
    """Check every file of a bundle, and sign its manifest.

    Returns:
        Plain JSON types: the bundle, the manifest's digest, the public key and the engines that are signed with it.

    Raises:
        BundleError: A file of the bundle is missing, damaged or changed.
        UsageError: The key cannot be used.
        MissingExtraError: The library that signs is not installed.
    """
    bundle = Bundle.open(config.bundle)
    bundle.verify()
    public = sign_manifest(bundle.path, config.key, key_password())
    return {
        "bundle": str(bundle.path),
        "digest": bundle.manifest.digest,
        "public_key": public,
        "engines": sorted(bundle.manifest.engines),
    }


def key_password() -> bytes | None:
    """Return the password of the private key, if the user's environment has one."""
    password = os.environ.get(_PASSWORD)
    return password.encode() if password else None
