"""The benchmark of training with merged tokens judges the same weights with merging and without."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import merged_training


def test_each_row_is_a_training_judged_twice(monkeypatch, capsys):
    config = replace(merged_training.CONFIG, patch_size=7, width=16, depth=4, mlp_width=32)
    monkeypatch.setattr(merged_training, "CONFIG", config)
    asked = []
    train = merged_training.train

    def spied(recipe, **options):
        asked.append((recipe.epochs, recipe.merge_tokens))
        return train(recipe, **options)

    monkeypatch.setattr(merged_training, "train", spied)
    words = ["--data", "digits", "--epochs", "2", "--more", "1", "--merge-tokens", "4"]
    assert merged_training.main(words) == 0
    assert asked == [(2, 0), (1, 0), (1, 4)]
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "4 tokens merged per block" in rows[0][2]
    assert [row[0].strip() for row in rows[2:]] == ["dense", "trained on, dense", "trained on, merging"]
    figures = [[float(cell) for cell in row[1:]] for row in rows[2:]]
    assert all(10 < figure <= 100 for row in figures for figure in row)
    assert any(plain != merged for plain, merged in figures)
