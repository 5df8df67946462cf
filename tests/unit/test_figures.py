"""figures.py: what is counted, which mistakes are shown, and that nothing else of matplotlib is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.evaluation.calibration import reliability
from resnet_cifar.evaluation.suspect_labels import SuspectLabels
from resnet_cifar.reporting import figures, style
from resnet_cifar.reporting.prediction_arrays import PredictionTable

NO_SUSPECTS = SuspectLabels(np.empty(0, np.int64), np.empty(0), np.empty(0))
CLASSES = ("cat", "dog", "a name that is too long")


def guessed(predictions: list[tuple[int, int, float]]) -> tuple[PredictionTable, dict[int, np.ndarray]]:
    """Of (label, predicted, probability): the predictions, and images that are all of one value, their row."""
    labels, predicted, sure = (np.array(column) for column in zip(*predictions, strict=True))
    images = {row: np.full((4, 4, 3), row, np.uint8) for row in range(len(predictions))}
    return PredictionTable(np.arange(len(predictions)), labels, predicted, sure, NO_SUSPECTS), images


def counted(labels: list[int], predicted: list[int]) -> np.ndarray:
    ones = np.ones(len(labels))
    return PredictionTable(np.arange(len(labels)), np.array(labels), np.array(predicted), ones, NO_SUSPECTS).counts(3)


@pytest.mark.parametrize(("cells", "words"), [("counts", ("1", "3")), ("shares", ("50.0\u00a0%", "100.0\u00a0%"))])
def test_confusion_counts_or_normalizes_by_row(cells: str, words: tuple[str, str]) -> None:
    axes = figures.confusion(counted([0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 2, 2]), CLASSES, cells).axes[0]
    texts = {text.get_position(): text.get_text() for text in axes.texts}
    assert texts[0.5, 0.5] == texts[1.5, 0.5] == words[0]
    assert texts[2.5, 2.5] == words[1]
    assert (0.5, 1.5) not in texts
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CLASSES)
    assert axes.get_title(loc="left") == "5 of 6 correct (83.3\u00a0%)"


def test_confusion_of_a_class_without_images_and_of_many_classes_is_drawn(tmp_path: Path) -> None:
    assert figures.confusion(counted([0, 1], [0, 1]), CLASSES, "counts").axes
    names = [str(index) for index in range(200)]
    figure = figures.confusion(np.eye(200, dtype=np.int64), names, "counts")
    many = figure.axes[0]
    assert not many.texts
    assert [label.get_text() for label in many.get_xticklabels()][:3] == ["0", "4", "8"]
    style.save(figure, tmp_path, "many")
    assert (tmp_path / "many.svg").stat().st_size < 1_000_000, "forty thousand squares are a picture, not a drawing"


def test_mistakes_are_the_most_confident_first() -> None:
    figure = figures.mistakes(*guessed([(0, 1, 0.6), (1, 1, 0.9), (0, 2, 0.8), (2, 2, 0.7)]), CLASSES)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.images[0].get_array()[0, 0, 0] for axes in shown] == [2, 0]
    assert [axes.get_title() for axes in shown] == ["a name that… 80\u00a0%", "dog 60\u00a0%"]
    assert [axes.texts[0].get_text() for axes in shown] == ["is cat", "is cat"]
    assert figure.get_suptitle() == "2 of 4 images are misclassified"


def test_mistakes_are_cut_and_the_figure_says_so() -> None:
    figure = figures.mistakes(*guessed([(0, 1, 0.5 + index / 100) for index in range(40)]), CLASSES)
    assert sum(bool(axes.images) for axes in figure.axes) == 32
    assert figure.get_suptitle().endswith(", the 32 most confident ones shown")


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_figure_is_written_as_png_and_as_svg_whose_text_is_text(wrong: int, tmp_path: Path) -> None:
    figure = figures.mistakes(*guessed([(0, wrong, 0.9), (1, 1, 0.9)]), CLASSES)
    style.save(figure, tmp_path / "figures", "mistakes")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["mistakes.png", "mistakes.svg"]
    with Image.open(tmp_path / "figures" / "mistakes.png") as image:
        image.load()
    root = ElementTree.fromstring((tmp_path / "figures" / "mistakes.svg").read_text())
    texts = {"".join(each.itertext()).strip() for each in root.iter("{http://www.w3.org/2000/svg}text")}
    assert f"{wrong} of 2 images are misclassified" in texts


def test_a_panel_of_a_page_has_its_colors_and_no_background_of_its_own() -> None:
    bins = reliability(np.array([0.3, 0.8, 0.9]), np.array([False, True, True]))
    text = style.inline(figures.calibration(bins, bins), "reliability diagram")
    assert text.startswith('<svg role="img" aria-label="reliability diagram"')
    assert "var(--accent)" in text and "var(--second)" in text and "var(--muted)" in text
    assert not {color for color in (style.INK, style.MUTED, style.LINE, style.FIRST, style.SECOND) if color in text}
    assert "#ffffff" not in text and "<style" not in text and "<metadata" not in text
    assert "uncalibrated: error" in text


def test_the_legend_covers_no_curve() -> None:
    unconfident = reliability(np.array([0.3, 0.5, 0.7]), np.array([True, True, True]))
    figure = figures.calibration(unconfident, unconfident)
    figure.canvas.draw()
    (legend,), frame = figure.legends, figure.axes[0].get_window_extent()
    assert not legend.get_window_extent().overlaps(frame)
    assert figure.axes[1].get_ylabel() == "share of images"


def test_small_images_are_enlarged_by_whole_pixels() -> None:
    image = np.arange(32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(32, 32, 3)
    large = figures._enlarged(image)
    assert large.shape == (160, 160, 3)
    assert (large[::5, ::5] == image).all()


def test_drawing_needs_no_pyplot_state_and_is_loaded_late() -> None:
    program = """
import sys
import numpy as np
from resnet_cifar.reporting import figures, run_report
from resnet_cifar.tracking import multi
assert not {"matplotlib", "seaborn", "pandas", "torch"} & set(sys.modules)
figures.confusion(np.array([[1, 0], [1, 0]]), ("a", "b"), "counts")
from matplotlib import pyplot
assert pyplot.get_fignums() == []
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
