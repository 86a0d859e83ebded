"""Input of the page in the browser, and its results: one run for all tests."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from runtime.model_file.metadata import Variant
from tests.support.changed_models import mirror_weights

ROOT = Path(__file__).parents[2]
P3_COLORANTS = {  # Display P3 in the D50 white of ICC profiles
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def p3_profile() -> bytes:
    """sRGB's profile with the colorants of Display P3."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for number in range(int.from_bytes(profile[128:132], "big")):
        entry = profile[132 + 12 * number : 144 + 12 * number]
        if values := P3_COLORANTS.get(bytes(entry[:4])):
            offset = int.from_bytes(entry[4:8], "big") + 8
            fixed = b"".join(round(value * 65536).to_bytes(4, "big", signed=True) for value in values)
            profile[offset : offset + 12] = fixed
    return bytes(profile)


def write_vit(
    path: Path,
    *,
    width: int = 48,
    mlp: int = 96,
    depth: int = 2,
    heads: int = 4,
    variant: Variant = "float32",
) -> Path:
    """A small ViT with random weights for images of 64 x 64, cut as photos usually are."""
    import onnx_ir as ir
    from onnx import helper

    from export.graph.canonicalize import canonicalize
    from export.graph.float16 import to_float16
    from export.sources.from_torch import export_raw_graph
    from runtime import Metadata, Preprocess
    from tests.support.small_models import lively
    from vit.config import ViTConfig

    sizes = {"width": width, "depth": depth, "heads": heads, "mlp_width": mlp}
    config = ViTConfig(image_size=(64, 64), patch_size=16, classes=20, **sizes)
    graph = export_raw_graph(lively(config))
    canonicalize(graph)
    spec = Preprocess(size=(64, 64), resize="crop", resize_to=72, interpolation="bicubic")
    labels = tuple(f"class {index}" for index in range(20))
    proto = ir.to_proto(to_float16(graph) if variant == "float16" else graph)
    helper.set_model_props(
        proto, {"vit_edge": Metadata(variant=variant, preprocess=spec, labels=labels).to_json()}
    )
    path.write_bytes(proto.SerializeToString())
    return path


def write_hardware(path: Path) -> Path:
    """The package's web.mjs that takes Chromium's adapter in software for a GPU."""
    source = (ROOT / "javascript" / "web.mjs").read_text()
    changed = source.replace("adapter.info?.isFallbackAdapter === true", "false")
    assert changed != source
    path.write_text(changed, encoding="utf-8")
    return path


def scene() -> Image.Image:
    """A colorful image with structure at every scale, 480 x 360."""
    y, x = np.mgrid[:360, :480] / 60.0
    channels = [
        np.sin(x * a + y * b) + np.sin(x * y * c) for a, b, c in ((1, 2, 1), (3, 1, 0.5), (2, 3, 0.2))
    ]
    return Image.fromarray(np.uint8(127.5 + 63 * np.stack(channels, axis=2)))


def write_variants(folder: Path, photo: Image.Image) -> dict[str, Path]:
    """The same photo as cameras and editors store it."""
    paths = {}

    def save(name: str, image: Image.Image, **options: Any) -> None:
        paths[name] = folder / name
        image.save(paths[name], **options)

    for orientation, method in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(f"exif-{orientation}.jpg", photo.transpose(method), quality=95, exif=exif)
    save("p3.jpg", photo, quality=95, icc_profile=p3_profile())
    alpha = Image.linear_gradient("L").resize(photo.size)
    save("alpha.png", Image.merge("RGBA", [*photo.split(), alpha]))
    save("gray.jpg", photo.convert("L"), quality=95)
    save("large.jpg", photo.resize((4000, 3000), Image.Resampling.BICUBIC), quality=90)
    return paths


@pytest.fixture(scope="session")
def plan(digits_artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plan for the driver: models, images, and files that are neither."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs chromium on the path: apt-get install chromium")
    if (
        shutil.which("node") is None
        or not (ROOT / "javascript" / "node_modules" / "playwright-core").is_dir()
    ):
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    from tools.digit_images import write_digits

    folder = tmp_path_factory.mktemp("browser")
    photos = sorted((ROOT.parent / "shared" / "data" / "imagenet-200").glob("*.JPEG"))[::20]
    base = Image.open(photos[0]).convert("RGB") if photos else scene()
    variants = write_variants(folder, base)
    (folder / "text.onnx").write_text("not a model")
    vit = write_vit(folder / "vit.onnx")
    data = vit.read_bytes()
    (folder / "other.onnx").write_bytes(data.replace(b"vit_edge", b"vit_else", 1))
    (folder / "cut.onnx").write_bytes(data[: len(data) // 2])
    (folder / "broken.jpg").write_bytes(variants["exif-3.jpg"].read_bytes()[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    screenshots = os.environ.get("SCREENSHOTS")
    return {
        "chromium": chromium,
        "digits": str(digits_artifacts / "model.int8.onnx"),
        "digitsFloats": {
            "model.fp16.onnx": str(write_vit(folder / "half.onnx", variant="float16")),
            "model.fp32.onnx": str(digits_artifacts / "model.onnx"),
        },
        "flipped": str(mirror_weights(digits_artifacts / "model.int8.onnx", folder / "flipped.onnx")),
        "flippedFloat": str(mirror_weights(digits_artifacts / "model.onnx", folder / "flipped32.onnx")),
        "hardware": str(write_hardware(folder / "hardware.mjs")),
        "tiny": str(write_vit(folder / "tiny.onnx", width=192, mlp=768, depth=12, heads=3)),
        "vit": str(vit),
        "digitImages": [str(path) for path in write_digits(folder / "digits", 10)],
        "photos": [str(path) for path in (*photos, *variants.values())],
        "strangers": [str(folder / name) for name in ("text.onnx", "other.onnx", "cut.onnx")],
        "broken": [str(folder / name) for name in ("broken.jpg", "empty.png", "text.png")],
        "screenshots": screenshots,
    }


@pytest.fixture(scope="session")
def seen(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Events in the browser."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    path.write_text(json.dumps(plan))
    command = ["node", ROOT / "tests" / "browser" / "drive.mjs", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found
