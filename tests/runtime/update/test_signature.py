"""Signatures: what they cover, who can check them, and each way in which they are wrong."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import ArtifactError, Classifier
from runtime.errors import MissingPackageError
from runtime.update import signature
from runtime.update.signature import read_signature, sign_model, signature_path

from .conftest import Run, WriteModel


def test_a_model_is_signed_and_verified(write_model: WriteModel, keys: Path, run: Run) -> None:
    model = write_model()
    code, said = run("sign", model, "--key", keys / "key.pem", "--version", 7)
    assert (code, "version 7" in said) == (0, True)
    code, said = run("verify", model, "--key", keys / "public.pem")
    assert (code, "verified, version 7" in said) == (0, True)
    assert Classifier(model, key=keys / "public.pem").info.path == str(model)


def test_openssl_verifies_it_without_this_project(
    write_model: WriteModel, keys: Path, tmp_path: Path
) -> None:
    model = write_model()
    sign_model(model, keys / "key.pem", 7)
    envelope = json.loads(signature_path(model).read_bytes())
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys / "public.pem", "-rawin"]
    done = subprocess.run([*command, "-in", "signed", "-sigfile", "sig"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr
    statement = json.loads(payload)
    assert statement["subject"][0]["name"] == "model.onnx"
    assert statement["predicate"] == {"version": 7}


def test_every_model_of_a_folder_is_signed(
    write_model: WriteModel, keys: Path, run: Run, tmp_path: Path
) -> None:
    write_model("out/model.onnx")
    write_model("out/model.fp16.onnx", variant="float16")
    assert run("sign", tmp_path / "out", "--key", keys / "key.pem")[0] == 0
    assert run("verify", tmp_path / "out", "--key", keys / "public.pem")[1].count("version none") == 2


def change_envelope(model: Path, change: Any) -> None:
    path = signature_path(model)
    envelope = json.loads(path.read_bytes())
    change(envelope)
    path.write_text(json.dumps(envelope))


def set_version(envelope: dict[str, Any]) -> None:
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["version"] = 9
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_version, "not signed with the key"),
        (lambda e: e["signatures"].clear(), "not signed with the key"),
        (lambda e: e.update(payloadType="text/plain"), "expected payloadType"),
        (lambda e: e.update(payload="%"), "not a signature of vit-edge sign"),
        (lambda e: e.pop("payload"), "expected a field 'payload'"),
        (lambda e: e.update(more="x" * 2**16), "more than 65,536 bytes"),
    ],
)
def test_a_changed_signature_is_refused(change: Any, words: str, write_model: WriteModel, keys: Path) -> None:
    model = write_model()
    sign_model(model, keys / "key.pem", 3)
    change_envelope(model, change)
    with pytest.raises(ArtifactError, match=words):
        Classifier(model, key=keys / "public.pem")


def test_another_key_and_another_model_are_refused(write_model: WriteModel, keys: Path, run: Run) -> None:
    model = write_model()
    sign_model(model, keys / "key.pem")
    with pytest.raises(ArtifactError, match=r"not signed with the key .*other-public\.pem"):
        Classifier(model, key=keys / "other-public.pem")
    write_model(gain=0.2)
    with pytest.raises(ArtifactError, match="SHA-256 is not the expected one"):
        Classifier(model, key=keys / "public.pem")
    assert run("verify", model, "--key", keys / "public.pem")[0] == 2
    signature_path(model).unlink()
    with pytest.raises(ArtifactError, match=r"expected its signature in model\.onnx\.sig, found none"):
        Classifier(model, key=keys / "public.pem")
    with pytest.raises(ValueError, match="found bytes"):
        Classifier(model.read_bytes(), key=keys / "public.pem")


def test_a_signed_digest_does_not_replace_the_expected_one(write_model: WriteModel, keys: Path) -> None:
    model = write_model()
    sha256 = sign_model(model, keys / "key.pem").sha256
    assert Classifier(model, key=keys / "public.pem", sha256=sha256.upper()).info.sha256 == sha256
    with pytest.raises(ArtifactError, match="the signed SHA-256 is not the expected one"):
        Classifier(model, key=keys / "public.pem", sha256="0" * 64)


def test_keys_that_cannot_be_used(write_model: WriteModel, keys: Path, tmp_path: Path) -> None:
    model = write_model()
    rsa = tmp_path / "rsa.pem"
    make = ["openssl", "genpkey", "-algorithm", "rsa", "-out", rsa]
    subprocess.run(make, check=True, capture_output=True)
    lock = [
        "openssl",
        "pkey",
        "-in",
        keys / "key.pem",
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        tmp_path / "p",
    ]
    subprocess.run(lock, check=True, capture_output=True)
    for key in (rsa, tmp_path / "p", keys / "public.pem", model):
        with pytest.raises(ArtifactError, match="expected an Ed25519 private key"):
            sign_model(model, key)
    with pytest.raises(ArtifactError, match="the key cannot be read"):
        sign_model(model, tmp_path / "none")
    sign_model(model, keys / "key.pem")
    with pytest.raises(ArtifactError, match="expected an Ed25519 public key"):
        read_signature(model, keys / "key.pem")


def test_without_cryptography_only_a_key_is_refused(
    write_model: WriteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature that nobody asked about is no reason not to open a model."""
    model = write_model()
    signature_path(model).write_text("anything")
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    assert Classifier(model).info.path == str(model)
    with pytest.raises(MissingPackageError, match=r"python tools/install\.py sign"):
        Classifier(model, key=tmp_path / "public.pem")


def test_only_the_content_that_was_signed_is_read(write_model: WriteModel, keys: Path) -> None:
    """Another type of statement by the same key, as supply chains sign many, is not a model."""
    model = write_model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signature, "_PREDICATE", "https://slsa.dev/provenance/v1")
        sign_model(model, keys / "key.pem")
    with pytest.raises(ArtifactError, match="expected a statement urn:vit-edge:model:1"):
        read_signature(model, keys / "public.pem")
