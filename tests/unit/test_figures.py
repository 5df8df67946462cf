"""figures.py: what is counted, which mistakes are shown, and that nothing else of matplotlib is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.reporting import figures

CLASSES = ("cat", "dog", "a name that is too long")


def predictions(guesses: list[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray, figures.Read]:
    """Of (label, predicted, probability): probabilities, labels, and images that are all of one value, their index."""
    probabilities = np.array([[sure if c == guess else (1 - sure) / 2 for c in range(3)] for _, guess, sure in guesses])
    labels = np.array([label for label, _, _ in guesses])
    images = np.stack([np.full((4, 4, 3), index, np.uint8) for index in range(len(guesses))])
    return probabilities, labels, images.__getitem__


def test_confusion_counts_and_normalises_by_row() -> None:
    axes = figures.confusion(np.array([0, 1, 1, 2, 2, 2]), np.array([0, 0, 1, 2, 2, 2]), CLASSES).axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells[0.5, 0.5] == cells[1.5, 0.5] == "1\n50.0%"
    assert cells[2.5, 2.5] == "3\n100.0%"
    assert cells[0.5, 1.5] == ""
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert axes.get_title(loc="left") == "5 of 6 right (83.33%)"


def test_confusion_of_a_class_without_images_and_of_many_classes_is_drawn() -> None:
    assert figures.confusion(np.array([0, 1]), np.array([0, 1]), CLASSES).axes
    many = figures.confusion(np.arange(200), np.arange(200), [str(index) for index in range(200)]).axes[0]
    assert not many.texts
    assert [label.get_text() for label in many.get_xticklabels()][:5] == ["0", "", "", "", "4"]


def test_gallery_shows_the_surest_mistakes_first() -> None:
    figure = figures.mistakes(*predictions([(0, 1, 0.6), (1, 1, 0.9), (0, 2, 0.8), (2, 2, 0.7)]), CLASSES)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in shown] == [2, 0]
    assert [axes.get_title() for axes in shown] == ["a name that… 80%", "dog 60%"]
    assert [axes.texts[0].get_text() for axes in shown] == ["is cat", "is cat"]
    assert figure.get_suptitle() == "2 of 4 images are taken for something else"


def test_gallery_is_cut_and_says_so() -> None:
    figure = figures.mistakes(*predictions([(0, 1, 0.5 + index / 100) for index in range(40)]), CLASSES)
    assert sum(bool(axes.images) for axes in figure.axes) == 32
    assert figure.get_suptitle().endswith(", the 32 surest of them")


@pytest.mark.parametrize("wrong", [0, 1])
def test_figures_are_written_as_png(wrong: int, tmp_path: Path) -> None:
    files = figures.draw(tmp_path / "figures", *predictions([(0, wrong, 0.9), (1, 1, 0.9)]), CLASSES)
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["confusion.png", "mistakes.png"]
    for file in files.values():
        with Image.open(file) as image:
            image.load()
            assert image.format == "PNG"


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    large = figures._enlarged(image)
    assert large.shape == (160, 160, 3)
    assert (large[::5, ::5] == image).all()


def test_drawing_needs_no_pyplot_state_and_is_loaded_late() -> None:
    program = """
import sys
import numpy as np
from resnet_cifar.reporting import figures, track
assert not {"matplotlib", "seaborn", "pandas"} & set(sys.modules)
figures.confusion(np.array([0, 1]), np.array([0, 0]), ("a", "b"))
from matplotlib import pyplot
assert pyplot.get_fignums() == []
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
