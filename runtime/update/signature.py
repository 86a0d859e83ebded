"""Sign and verify a model file: Ed25519 over an in-toto statement in a DSSE envelope, the file `MODEL.sig`.

The statement holds the SHA-256 of the .onnx file, which covers a second file with weights, and a version.
The package cryptography (the extra `sign`) is imported when a key is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingPackageError, install_line
from ..model_file.artifact import read_artifact
from ..model_file.integrity import open_regular_file
from ..model_file.metadata import ArtifactError
from ..strict_json import parse_json, read_field
from ..writing import write_atomically

SUFFIX = ".sig"
MAX_BYTES = 2**16  # of a signature file
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:vit-edge:model:1"
_PUBLIC = "an Ed25519 public key in PEM, as openssl pkey -pubout writes it"
_PRIVATE = (
    "an Ed25519 private key in PEM, as openssl genpkey -algorithm ed25519 writes it, without a password"
)


@dataclass(frozen=True)
class Signature:
    """Content of a signature file."""

    sha256: str  # of the .onnx file
    version: int  # 0: none
    key: str | None  # SHA-256 of the public key that made it; None: it was not verified


def signature_path(model: Path) -> Path:
    """Return the path of the signature of a model file.

    Args:
        model: the .onnx file.
    """
    return model.with_name(model.name + SUFFIX)


def sign_model(model: Path, key: Path, version: int = 0) -> Signature:
    """Write the signature of a model file beside it.

    Args:
        model: the .onnx file; it is checked first.
        key: PEM file with an Ed25519 private key.
        version: a whole number, higher for each new model; 0: none.

    Returns:
        What was signed.

    Raises:
        ArtifactError: when the model or the key cannot be used.
        MissingPackageError: without cryptography.
    """
    private = _load_key(key, private=True)
    artifact = read_artifact(model)
    subjects = {model.name: artifact.sha256}
    if artifact.weights is not None:
        with open_regular_file(artifact.weights) as file:
            subjects[artifact.weights.name] = hashlib.file_digest(file, "sha256").hexdigest()
    statement = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects.items()],
        "predicateType": _PREDICATE,
        "predicate": {"version": version},
    }
    payload = json.dumps(statement).encode()
    fingerprint = _hash_key(private.public_key())
    signed = base64.b64encode(private.sign(_encode(payload))).decode()
    envelope = {
        "payloadType": _PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": fingerprint, "sig": signed}],
    }
    write_atomically(signature_path(model), json.dumps(envelope, indent=1).encode() + b"\n")
    return Signature(artifact.sha256, version, fingerprint)


def read_signature(model: Path, key: os.PathLike[str] | str | None) -> Signature:
    """Read the signature beside a model file; the model itself is not read.

    Args:
        model: the .onnx file.
        key: PEM file with the public key that must have made it; None: it is not verified.

    Returns:
        Its content, which the caller compares with the model.

    Raises:
        ArtifactError: when it is missing, damaged or of another key, or the key cannot be used.
        MissingPackageError: without cryptography, where a key is given.
    """
    path = signature_path(model)
    public = None if key is None else _load_key(Path(key), private=False)
    try:
        with open_regular_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ArtifactError(
            f"{model}: expected its signature in {path.name}, found none; sign it: vit-edge sign"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path}: it cannot be read: {error.strerror or error}") from error
    try:
        payload, signatures = _open_envelope(data)
        if public is not None and not any(_is_signed(public, payload, each) for each in signatures):
            raise ArtifactError(
                f"{path}: it is not signed with the key {key}: it was changed, or another key made it"
            )
        return _read_statement(payload, None if public is None else _hash_key(public))
    except ValueError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"{path}: not a signature of vit-edge sign ({error}); sign the model again"
        ) from error


def _encode(payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)


def _open_envelope(data: bytes) -> tuple[bytes, list[bytes]]:
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    envelope = parse_json(data)
    if (found := read_field(envelope, "payloadType", str, where="envelope")) != _PAYLOAD:
        raise ValueError(f"expected payloadType {_PAYLOAD}, found {found!r:.60}")
    entries = read_field(envelope, "signatures", list, where="envelope")
    texts = [read_field(entry, "sig", str, where="signature") for entry in entries]
    return _decode(read_field(envelope, "payload", str, where="envelope")), [_decode(text) for text in texts]


def _decode(text: str) -> bytes:
    """Decode base64 of either alphabet, which DSSE allows."""
    return base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)


def _read_statement(payload: bytes, key: str | None) -> Signature:
    statement = parse_json(payload)
    kinds = [read_field(statement, name, str, where="statement") for name in ("_type", "predicateType")]
    if kinds != [_STATEMENT, _PREDICATE]:
        raise ValueError(f"expected a statement {_PREDICATE}, found {kinds[1]!r:.60}")
    subjects = read_field(statement, "subject", list, where="statement")
    if not 1 <= len(subjects) <= 2:
        raise ValueError(f"expected one subject or two, found {len(subjects)}")
    digest = read_field(subjects[0], "digest", dict, where="subject")
    sha256 = read_field(digest, "sha256", str, where="digest")
    predicate = read_field(statement, "predicate", dict, where="statement")
    version = read_field(predicate, "version", int, where="predicate")
    if not 0 <= version < 2**53 or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise ValueError("expected a version from 0 and a SHA-256 in lowercase")
    return Signature(sha256, version, key)


# --- Keys ---


def _load_key(path: Path, *, private: bool) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise MissingPackageError(
            f"signatures need the package cryptography; {install_line('sign')}"
        ) from error
    try:
        with open_regular_file(path) as file:
            data = file.read(MAX_BYTES)
    except OSError as error:
        raise ArtifactError(f"{path}: the key cannot be read: {error.strerror or error}") from error
    try:
        key: Any = load_pem_private_key(data, None) if private else load_pem_public_key(data)
    except (ValueError, TypeError):  # TypeError: it needs a password
        key = None
    except Exception as error:  # cryptography's UnsupportedAlgorithm is no ValueError
        raise ArtifactError(f"{path}: the key cannot be used: {error}") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey):
        raise ArtifactError(f"{path}: expected {_PRIVATE if private else _PUBLIC}, found something else")
    return key


def _hash_key(public: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _is_signed(public: Any, payload: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, _encode(payload))
    except InvalidSignature:
        return False
    return True
