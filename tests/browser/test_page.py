"""examples/browser in Chromium: the answers of Python, and what a person meets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import read_metadata
from runtime.session import open_session

ROOT = Path(__file__).parents[2]
STYLE = ROOT / "examples" / "browser" / "style.css"
Seen = dict[str, Any]


def logits_of(model: str, path: str) -> np.ndarray:
    """Logits of Python for an image file: float32 [classes]."""
    metadata = read_metadata(model)
    session = open_session(Path(model), device="cpu", threads=1, target=metadata.target)
    (logits,) = session.run(None, {"pixels": metadata.preprocess(path)[None]})
    return np.asarray(logits)[0]


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    """Signal to noise of logits, each row around its mean, in dB."""
    expected, found = (each - each.mean(axis=1, keepdims=True) for each in (expected, found))
    return float(10 * np.log10((expected**2).sum() / max(((expected - found) ** 2).sum(), 1e-12)))


def compared(model: str, answers: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of Python and of the browser, and the labels equal on the way."""
    failed = {path: answer["error"] for path, answer in answers.items() if "error" in answer}
    assert not failed
    expected = np.stack([logits_of(model, path) for path in answers])
    found = np.array([answer["logits"] for answer in answers.values()])
    labels = read_metadata(model).labels
    assert [answer["label"] for answer in answers.values()] == [labels[row.argmax()] for row in expected]
    return expected, found


def test_digits_in_int8_are_those_of_python(plan: Seen, seen: Seen) -> None:
    answers = seen["plain"]["images"]
    assert len(answers) == 10
    expected, found = compared(plan["digits"], answers)
    value = sqnr(expected, found)
    print(f"\nSQNR of the digits, browser against Python: {value:.1f} dB")
    assert value >= 28


def test_photos_are_those_of_python(plan: Seen, seen: Seen) -> None:
    """EXIF orientation, a P3 profile, transparency, gray, 12 megapixels; photos where there are some."""
    answers = seen["isolated"]["images"]
    expected, found = compared(plan["vit"], answers)
    for path, one, other in zip(answers, expected, found, strict=True):
        print(f"\n{Path(path).name}: {sqnr(one[None], other[None]):.1f} dB", end="")
        assert sqnr(one[None], other[None]) >= 28, path
    value = sqnr(expected, found)
    print(f"\nSQNR of {len(answers)} photos, browser against Python: {value:.1f} dB")
    large = next(answer for path, answer in answers.items() if path.endswith("large.jpg"))
    print("12 megapixels:", {name: round(value) for name, value in large["milliseconds"].items()}, "ms")


def test_a_dropped_image_and_a_model_chosen_by_hand_give_the_same(plan: Seen, seen: Seen) -> None:
    path = plan["digitImages"][0]
    logits = seen["plain"]["images"][path]["logits"]
    assert seen["plain"]["dropped"]["logits"] == logits
    bare = seen["bare"]
    assert "there is no model beside this page" in bare["error"]
    assert bare["disabled"]
    assert bare["images"][path]["logits"] == logits


def test_an_image_that_comes_before_the_model_waits_for_it(plan: Seen, seen: Seen) -> None:
    assert seen["early"] | {"noise": [], "prediction": None} == {
        "error": False, "preview": True, "prediction": None, "noise": []
    }  # fmt: skip
    logits = seen["plain"]["images"][plan["digitImages"][1]]["logits"]
    assert seen["early"]["prediction"]["logits"] == logits
    assert seen["never"]["error"].startswith("dropped.png has no label: there is no model beside this page")
    assert not seen["never"]["preview"]


def test_it_works_without_a_network_after_the_first_load(plan: Seen, seen: Seen) -> None:
    """The server was closed as well."""
    path = plan["digitImages"][0]
    assert seen["plain"]["offline"]["logits"] == seen["plain"]["images"][path]["logits"]


def test_the_self_test_runs_at_the_first_start_alone(plan: Seen, seen: Seen) -> None:
    first, later = seen["plain"]["facts"]["device"], seen["plain"]["offline"]["device"]
    assert re.fullmatch(
        r"In WebAssembly: this browser has WebGPU, but no GPU for it\. "
        r"Self-test passed: 2 of 2 labels equal, \d+\.\d dB on wasm \(minimum: \d+\.\d dB\)\.",
        first,
    )
    assert later == f"{first} Checked at the first start."


def test_a_file_with_changed_weights_is_not_used(seen: Seen) -> None:
    error = seen["plain"]["flipped"]["error"]
    assert error.startswith("flipped.onnx cannot be used: the device wasm fails the self-test (weights: ")


# --- WebGPU, in the adapter that Chromium computes in software ---


def test_webgpu_gives_the_answers_of_webassembly(plan: Seen, seen: Seen) -> None:
    """The digits in float32, and a ViT-Ti of random weights."""
    wasm, webgpu = seen["gpu"]["wasm"], seen["gpu"]["webgpu"]
    for which, count in (("images", 10), ("photos", 1)):
        expected, found = (
            np.array([answer["logits"] for answer in each[which].values()]) for each in (wasm, webgpu)
        )
        assert len(found) == count
        assert [answer["label"] for answer in webgpu[which].values()] == [
            answer["label"] for answer in wasm[which].values()
        ]
        print(f"\nSQNR of {which}, WebGPU against WebAssembly: {sqnr(expected, found):.1f} dB")
        assert sqnr(expected, found) >= 50
    compared(plan["digitsFloats"]["model.fp32.onnx"], webgpu["images"])
    assert webgpu["digits"]["model"].endswith(", float32, 0.9 MB, WebGPU")
    assert webgpu["digits"]["device"].startswith(
        "On the GPU: as the address of this page asks. Self-test passed: 2 of 2"
    )
    assert wasm["digits"]["model"].endswith(", int8, 0.4 MB, 1 thread")
    assert webgpu["tiny"]["device"].endswith("No self-test: the file carries none; export it again.")


def test_a_device_is_never_replaced_in_silence(seen: Seen) -> None:
    gpu = seen["gpu"]
    assert gpu["automatic"]["device"].startswith(
        "In WebAssembly: WebGPU is computed by the CPU here. Self-test passed"
    )
    assert (
        "its GPU computes no float16 (the feature shader-f16 is missing); use the float32 file"
        in gpu["float16"]["error"]
    )
    assert gpu["unknown"]["error"] == "No model: expected ?device=wasm or ?device=webgpu, found npu."
    assert seen["bare"]["noGpu"]["error"].endswith(
        "cannot be used: this browser has WebGPU, but no GPU for it; use the device wasm."
    )
    assert seen["old"]["error"].startswith(
        "No model: expected the module onnxruntime-web/webgpu, found one with the older WebGPU"
    )


def test_the_fastest_device_that_passes_is_kept(seen: Seen) -> None:
    """Software is slower, and counts as a GPU here."""
    number = r"\d+(\.\d)? ms per image"
    assert re.match(
        rf"In WebAssembly: {number}; on the GPU {number}\. Self-test passed: 2 of 2",
        seen["hardware"]["right"]["device"],
    )


def test_a_gpu_that_fails_leaves_webassembly_and_says_why(seen: Seen) -> None:
    changed, spoiled = (seen["hardware"][name]["device"] for name in ("changed", "spoiled"))
    assert changed.startswith("In WebAssembly: the GPU fails the self-test (")
    assert spoiled.startswith("In WebAssembly: the GPU cannot be used (not an ONNX model")
    for device in (changed, spoiled):
        assert "Self-test passed: 2 of 2 labels equal" in device


def test_isolation_brings_threads(seen: Seen) -> None:
    assert not seen["plain"]["facts"]["isolated"]
    assert seen["plain"]["facts"]["model"].endswith(", 1 thread")
    assert seen["isolated"]["facts"]["isolated"]
    threads = re.search(r", (\d+) thread", seen["isolated"]["facts"]["model"])
    assert threads is not None
    assert 1 <= int(threads[1]) <= 4


def test_what_is_no_model_says_so(plan: Seen, seen: Seen) -> None:
    text, other, cut = (seen["plain"]["strangers"][path] for path in plan["strangers"])
    assert text.startswith("text.onnx cannot be used: not an ONNX model")
    assert other.startswith("other.onnx cannot be used: an ONNX model, but not made by vit-edge")
    assert cut.startswith("cut.onnx cannot be used: not an ONNX model, or a damaged one: it is cut short")


def test_what_is_no_image_says_so(plan: Seen, seen: Seen) -> None:
    broken, empty, text = (seen["isolated"]["broken"][path]["error"] for path in plan["broken"])
    assert broken.startswith("broken.jpg has no label: this browser cannot decode it")
    assert empty == "empty.png has no label: it is empty (zero bytes)."
    assert text.startswith("text.png has no label: this browser cannot decode it")


def test_the_camera(seen: Seen) -> None:
    camera = seen["plain"]["camera"]
    assert camera["pressed"] == "true"
    assert camera["label"]
    assert camera["stopped"]


def test_the_page_does_not_freeze(seen: Seen) -> None:
    assert seen["isolated"]["ticks"] >= 2


def test_titles_names_and_keyboard(seen: Seen) -> None:
    plain = seen["plain"]
    assert plain["facts"]["title"] == "Classify images on this device – vit-edge"
    assert plain["facts"]["lang"] == "en"
    for name in ("Choose image", "Start camera", "Open a model…"):
        assert f'button "{name}"' in plain["tree"]
    assert plain["tree"].count("heading") == 2
    assert plain["keyboard"]["names"] == ["Choose image", "Start camera", "Open a model…"]
    assert plain["keyboard"]["chooser"]


def test_it_fits_390_pixels(seen: Seen) -> None:
    for run in ("plain", "isolated"):
        assert seen[run]["facts"]["overflow"] == 0
        assert min(seen[run]["facts"]["heights"]) >= 44  # for a finger


def test_the_console_is_quiet(seen: Seen) -> None:
    offline = "ERR_INTERNET_DISCONNECTED"
    assert [line for line in seen["plain"]["noise"] if offline not in line] == []
    assert seen["isolated"]["noise"] == []
    assert [line for line in seen["bare"]["noise"] if "404" not in line] == []


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """WCAG AA: 4.5 for text, 3 for what marks a state."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[theme]))
    assert len(colors) == 10
    pairs = [
        ("text", "card", 4.5),
        ("text", "ground", 4.5),
        ("muted", "card", 4.5),
        ("muted", "ground", 4.5),
        ("accent", "card", 4.5),
        ("accent-text", "accent", 4.5),
        ("error-text", "error-ground", 4.5),
        ("accent", "track", 3),
        ("accent", "ground", 3),
    ]
    for front, back, least in pairs:
        dark, light = sorted((luminance(colors[front]), luminance(colors[back])))
        assert (light + 0.05) / (dark + 0.05) >= least, (front, back)
