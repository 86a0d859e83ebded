"""Classes in words: the head of text vectors gives the logits of the two towers that it came from."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.support.two_towers import LENGTH, SIZE, save_two_towers, two_tower_logits
from vit.__main__ import main
from vit.checkpoint import load_checkpoint
from vit.pretrained import SourceError, import_model
from vit.pretrained.text_tower import check_text_tower, run_text_tower

transformers = pytest.importorskip("transformers")
FAMILIES = ("clip", "siglip", "siglip2")
WORDS = ("cat", "dog", "empty field")


def make_words(count):
    """Names that differ in every place."""
    sounds = [a + b for a in "bdfgklmnprst" for b in "aeiou"]
    return tuple(f"{sounds[i % 60]}{sounds[i // 60]} {sounds[i * 7 % 60]}" for i in range(count))


def build(family, folder, words=WORDS):
    if family == "siglip":
        pytest.importorskip("sentencepiece")
    return save_two_towers(family, folder, [f"a photo of a {word}" for word in words])


def images(count=16):
    random = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize("count", [10, 1000])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_labels_are_those_of_both_towers(family, count, tmp_path):
    words = make_words(count)
    build(family, tmp_path / "model", words)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(words))
    arguments = ["import", str(tmp_path / "model"), "--classes", str(names), "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    found = load_checkpoint(tmp_path / "run")
    config = found.model.config
    assert found.labels == words
    texts = [f"a photo of a {word}" for word in words]
    view = (torch.tensor(config.mean), torch.tensor(config.std))
    expected = two_tower_logits(tmp_path / "model", images(), texts, *view)
    with torch.no_grad():
        logits = found.model(images())
    assert expected.std(0).min() > 0.05  # other images, other logits
    assert len(set(expected.argmax(1).tolist())) > 1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert torch.equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_are_averaged_as_vectors_of_length_1(family, tmp_path):
    model = build(family, tmp_path)
    templates = ("a photo of a {}", "{} on a photo", "no {} here")
    tower = run_text_tower(tmp_path, WORDS, templates, torch.zeros(1, 3, SIZE, SIZE))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for word, vector in zip(WORDS, tower.vectors, strict=True):
        singles = []
        for template in templates:
            text = template.replace("{}", word)
            fill = {"padding": "max_length", "max_length": LENGTH} if family != "clip" else {}
            inputs = tokenizer([text], return_tensors="pt", **fill)
            with torch.no_grad():
                single = model.get_text_features(**inputs).pooler_output[0]
            singles.append(single / single.norm())
        mean = torch.stack(singles).mean(0)
        torch.testing.assert_close(vector, mean / mean.norm(), atol=1e-6, rtol=0)


def test_the_batch_of_texts_changes_nothing(tmp_path, monkeypatch):
    build("clip", tmp_path)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    together = run_text_tower(tmp_path, WORDS, ("{}", "a {}"), pixels)
    monkeypatch.setattr("vit.pretrained.text_tower.BATCH", 1)
    done = []
    single = run_text_tower(tmp_path, WORDS, ("{}", "a {}"), pixels, done.append)
    torch.testing.assert_close(together.vectors, single.vectors, atol=1e-6, rtol=0)
    assert done == [1, 2, 3]


def test_capitals_change_nothing(tmp_path):
    """SigLIP 2 was trained on texts in lower case, and the tokenizer of its folder leaves capitals."""
    build("siglip2", tmp_path)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    small, large = (run_text_tower(tmp_path, [word, "dog"], ("A {}",), pixels) for word in ("cat", "CAT"))
    assert torch.equal(small.vectors, large.vectors)


def test_a_source_without_a_known_text_tower_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SourceError, match="expects the folder of a CLIP or SigLIP model"):
        check_text_tower(tmp_path / "model.safetensors")
    for kind in ("vit", "siglip2", None):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(SourceError, match=f"found model_type {kind!r}; --examples makes classes"):
            check_text_tower(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    check_text_tower(tmp_path)
    monkeypatch.setattr("vit.pretrained.text_tower.is_installed", lambda name: name != "transformers")
    with pytest.raises(ImportError, match=r"needs transformers, .*install.py train,cpu,words"):
        check_text_tower(tmp_path)
    monkeypatch.setattr("vit.pretrained.text_tower.is_installed", lambda name: name != "sentencepiece")
    (tmp_path / "spiece.model").touch()
    with pytest.raises(ImportError, match="needs sentencepiece"):
        check_text_tower(tmp_path)


def test_a_long_text_is_refused_and_not_cut_off(tmp_path):
    build("clip", tmp_path)
    with pytest.raises(SourceError, match=rf"has \d+ tokens \(limit: {LENGTH}\); shorten it"):
        run_text_tower(tmp_path, ["cat", "cat " * 40], ("{}",), torch.zeros(1, 3, SIZE, SIZE))


def test_files_that_transformers_cannot_use_are_refused(tmp_path):
    build("clip", tmp_path)
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    state = transformers.CLIPModel.from_pretrained(tmp_path).state_dict()
    from safetensors.torch import save_file

    image_tower = {name: value for name, value in state.items() if not name.startswith("text_model.")}
    save_file(image_tower, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(SourceError, match=r"tensors are missing \(text_model"):
        run_text_tower(tmp_path, WORDS, ("{}",), pixels)
    save_two_towers("clip", tmp_path / "other", [f"{a}{b} {b}{a}" for a in "abcdefgh" for b in "klmnopqr"])
    save_two_towers("clip", tmp_path, ["cat"])
    for file in (tmp_path / "other").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    with pytest.raises(SourceError, match="the tokenizer is of another model"):
        run_text_tower(tmp_path, ["ak ka hr", "gr rg"], ("{}",), pixels)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match="transformers cannot read it"):
        run_text_tower(tmp_path, WORDS, ("{}",), pixels)


def test_weights_of_another_image_tower_are_refused(tmp_path, capsys):
    """transformers reads model.safetensors, whatever file the import was pointed to."""
    model = build("clip", tmp_path / "model")
    with torch.no_grad():
        model.vision_model.post_layernorm.weight[0].add_(1.0)
    run = import_model(tmp_path / "model")
    assert run.model.config.classes == 0
    import vit.pretrained.load as load

    def changed(*_, **__):
        with torch.no_grad():
            run.model.norm.weight[0] += 1.0
        return run

    arguments = ["import", str(tmp_path / "model"), "--classes", "cat, dog", "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "import_model", changed)
        assert main(arguments) == 2
    assert (
        "expected the image embedding of transformers, found one that differs by" in capsys.readouterr().err
    )
    assert not np.any(list((tmp_path / "run").glob("*.safetensors")))
