"""Classes in words and by example on the command line: what they give, and what is refused."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.support.two_towers import save_two_towers
from vit.__main__ import main
from vit.checkpoint import load_checkpoint, save_checkpoint
from vit.class_head import DEFAULT_SCALE
from vit.commands.import_classes import read_words
from vit.data.batches import Store
from vit.data.datasets import open_images
from vit.data.training_images import digest_images
from vit.document import read_document
from vit.model import ViT

NAMES = ("blue sky", "grass", "rose")


@pytest.fixture
def run(tiny_model, tiny_preprocess, tmp_path):
    """A checkpoint whose head has classes of its own, which examples replace."""
    save_checkpoint(tmp_path / "run", model=tiny_model, preprocess=tiny_preprocess, labels="abc", recipe={
        "imported": "timm", "trained_on": ["00"]
    })  # fmt: skip
    return tmp_path / "run"


def call(*words):
    return main(["import", *map(str, words)])


def unit_features(model, preprocess, images):
    pixels = np.stack([preprocess(item) for item in images.items])
    with torch.no_grad():
        return F.normalize(model.features(torch.from_numpy(pixels)), dim=-1)


def test_classes_by_example(run, photos, tiny_model, tiny_preprocess, tmp_path):
    assert call(run, "--examples", photos, "--out", tmp_path / "made") == 0
    found, train = load_checkpoint(tmp_path / "made"), open_images(photos, "train")
    assert found.labels == NAMES
    assert found.recipe["head"] == "examples"
    assert found.recipe["trained_on"] == ["00", *digest_images(train)]  # the test images are not read
    embedded = unit_features(tiny_model, tiny_preprocess, train)
    means = torch.stack([embedded[train.targets == i].mean(0) for i in range(3)])
    center = means.mean(0)
    vectors = F.normalize(means - center, dim=-1)
    scale = float(found.model.head.weight[0].detach().norm())
    test = open_images(photos, "test")
    pixels, _ = Store(test, tiny_preprocess).batch(range(len(test)))
    with torch.no_grad():
        logits = found.model(pixels)
    products = (unit_features(tiny_model, tiny_preprocess, test) - center) @ vectors.T
    torch.testing.assert_close(logits, scale * products, atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(found.recipe["center"]), center, atol=1e-6, rtol=0)
    assert (logits.argmax(1).numpy() == test.targets).mean() > 0.9


def test_a_class_is_added_by_example(run, photos, tiny_preprocess, tmp_path):
    """The two classes stay as they are, and the one that is added is seen from their center."""
    both = tmp_path / "both"
    for name in NAMES[::2]:
        shutil.copytree(photos / "train" / name, both / name)
    assert call(run, "--examples", both, "--out", tmp_path / "two") == 0
    added = ("--add-class", "grass", "--examples", photos / "train" / "grass")
    assert call(tmp_path / "two", *added, "--out", tmp_path / "three") == 0
    two, three = load_checkpoint(tmp_path / "two"), load_checkpoint(tmp_path / "three")
    assert three.labels == ("blue sky", "rose", "grass")
    test = open_images(photos, "test")
    pixels, _ = Store(test, tiny_preprocess).batch(range(len(test)))
    with torch.no_grad():
        torch.testing.assert_close(three.model(pixels)[:, :2], two.model(pixels), atol=1e-3, rtol=0)
        right = three.model(pixels).argmax(1).numpy() == np.array([0, 2, 1])[test.targets]
    assert right.mean() > 0.9
    weight = three.model.head.weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), weight.norm(dim=1)[:1].expand(3), atol=1e-3, rtol=0)
    assert len(three.recipe["trained_on"]) == len(two.recipe["trained_on"]) + 12
    assert three.recipe["center"] == two.recipe["center"]
    assert call(tmp_path / "three", *added, "--out", tmp_path / "four") == 2


@pytest.fixture
def siglip(tmp_path):
    pytest.importorskip("transformers")
    save_two_towers("siglip2", tmp_path / "siglip", [f"a photo of a {name}" for name in NAMES])
    return tmp_path / "siglip"


def test_words_and_examples(siglip, photos, tmp_path):
    """Each vector is the mean of the class's words and examples; the labels keep the order of the words."""
    words = ("--classes", "rose, grass, blue sky")
    assert call(siglip, *words, "--out", tmp_path / "words") == 0
    assert call(siglip, "--examples", photos, "--out", tmp_path / "examples") == 0
    assert call(siglip, *words, "--examples", photos, "--out", tmp_path / "both") == 0
    runs = [load_checkpoint(tmp_path / name) for name in ("words", "examples", "both")]
    text, image, both = (F.normalize(each.model.head.weight.detach(), dim=-1) for each in runs)
    assert runs[0].labels == runs[2].labels == ("rose", "grass", "blue sky")
    text = F.normalize(text - text.mean(0), dim=-1)
    torch.testing.assert_close(both, F.normalize(text + image.flip(0), dim=-1), atol=1e-4, rtol=0)
    assert runs[2].recipe["head"] == "words and examples"
    assert runs[0].model.head.bias.tolist() == [-12.5] * 3
    center = torch.tensor(runs[2].recipe["center"])
    head = runs[2].model.head
    torch.testing.assert_close(head.bias, -head.weight @ center, atol=1e-4, rtol=0)


def test_a_file_names_the_classes_if_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_words("cat, empty field") == ("cat", "empty field")
    assert len(read_words(", ".join(f"kind {index} of a flower" for index in range(400)))) == 400
    (tmp_path / "cat,dog").write_text("lily, white\nrose\n")
    assert read_words("cat,dog") == ("lily, white", "rose")


def refused(capsys, *words):
    assert call(*words) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_options_that_do_not_go_together_are_refused(run, photos, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\n")
    for words, message in (
        (["--template", "a {}"], "--template writes the words of --classes"),
        (["--add-class", "fox"], "--add-class needs --examples FOLDER"),
        (["--add-class", "fox", "--examples", photos, "--classes", "a, b"], "leave --classes out"),
        (["--examples", photos, "--labels", names], "leave --labels out"),
        (["--classes", "a, b", "--template", "a photo"], "expects a text with one {}"),
        (["--classes", "names.text"], "found names.text; no file has that name"),
        (["--add-class", "", "--examples", photos], "expects the name of a class"),
        (["--classes", "cat, dog, cat"], "has cat more than once"),
        (["--classes", "cat, dog"], "found model_type None; --examples makes classes"),
        (["--examples", photos / "train" / "rose"], "expects a folder of images for each of at least 2"),
        (["--examples", photos, "--heads", "2"], "leave --heads out"),
        (["--examples", photos, "--add-class", "fox"], "expects images of one class, found folders of"),
        (["--examples", photos / "train" / "rose", "--add-class", "fox"], "found classes from training or"),
        ([], "use it as it is"),
    ):
        assert message in refused(capsys, run, *words, *out), words
    assert "it is the source, which is kept" in refused(capsys, run, "--examples", photos, "--out", run)
    assert not (tmp_path / "out").exists()


def test_a_class_is_not_added_to_words(siglip, photos, tmp_path, capsys):
    """Cosines of two images are larger than those of an image and a text: the new class would win always."""
    assert call(siglip, "--classes", "rose, grass", "--out", tmp_path / "words") == 0
    added = ("--add-class", "sky", "--examples", photos / "train" / "blue sky")
    message = refused(capsys, tmp_path / "words", *added, "--out", tmp_path / "out")
    assert "found classes from words; import it again with --classes and 'sky'" in message
    both = ("--classes", "rose, grass", "--examples", photos, "--out", tmp_path / "out")
    assert "found a difference in blue sky" in refused(capsys, siglip, *both)


def test_a_trained_head_is_no_head_of_vectors(run, photos, tmp_path, capsys):
    """The recipe of a checkpoint may say what its weights do not have."""
    assert call(run, "--examples", photos, "--out", tmp_path / "made") == 0
    found = load_checkpoint(tmp_path / "made")
    with torch.no_grad():
        found.model.head.weight[0] *= 2
    save_checkpoint(
        tmp_path / "bent",
        model=found.model,
        preprocess=found.preprocess,
        labels=found.labels,
        recipe=found.recipe,
    )
    added = ("--add-class", "sky", "--examples", photos / "train" / "blue sky")
    message = refused(capsys, tmp_path / "bent", *added, "--out", tmp_path / "out")
    assert "expected a head of class vectors, found one that was trained" in message


def test_one_example_per_class_gets_a_usual_scale(run, photos, tmp_path, capsys):
    for name in NAMES:
        (tmp_path / "few" / name).mkdir(parents=True)
        shutil.copy(photos / "train" / name / "0.png", tmp_path / "few" / name)
    assert call(run, "--examples", tmp_path / "few", "--out", tmp_path / "made") == 0
    assert "no class has two examples" in capsys.readouterr().err
    weight = load_checkpoint(tmp_path / "made").model.head.weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.full((3,), DEFAULT_SCALE), atol=1e-4, rtol=0)


def test_a_new_training_has_a_plain_head(run, photos, tmp_path):
    """The cosines and the projection belong to the head of vectors."""
    assert call(run, "--examples", photos, "--out", tmp_path / "made") == 0
    (photos / "train" / "grass").rename(photos / "train" / "lawn")
    shutil.rmtree(photos / "test")
    trained = tmp_path / "trained"
    assert main(["train", "--data", str(photos), "--from", str(tmp_path / "made"), "--epochs", "1",
                 "--out", str(trained), "--device", "cpu"]) == 0  # fmt: skip
    config = read_document(trained).config
    assert not config.cosine_head
    assert config.projection is None
    assert isinstance(load_checkpoint(trained).model, ViT)
