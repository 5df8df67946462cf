"""Sample images of each class, selected deterministically, and their thumbnails of bounded size."""

from __future__ import annotations

import numpy as np
from PIL import Image

from resnet_cifar.data.image_dataset import ImageDataset
from resnet_cifar.reporting import html_page

MOST_CLASSES = 80  # that are shown with images
_MOST_IMAGES, _FEWEST, _LINE = 320, 3, 15  # in the grid; of a class, at least; in a line of a wide screen
_LOSSLESS = 40 * 40  # pixels up to which an image is lossless: larger ones would bloat the page
LONGEST = 64


def shown_classes(labels: np.ndarray, classes: int) -> list[int]:
    """The classes shown with images: all nonempty ones, or evenly spaced ones of very many."""
    present = np.flatnonzero(np.bincount(labels, minlength=classes))
    kept = min(len(present), MOST_CLASSES)
    return present[np.arange(kept) * len(present) // kept].tolist()


def rows(labels: np.ndarray, label: int, shown: int) -> np.ndarray:
    """Rows of evenly spaced images of a class; `shown`: number of classes in the grid."""
    inside = np.flatnonzero(labels == label)
    share = _MOST_IMAGES // shown
    wanted = max(_FEWEST, share if share < _LINE else min(share // _LINE, 2) * _LINE)
    count = min(len(inside), wanted)
    return inside[np.arange(count) * len(inside) // count]


def thumbnail(image: np.ndarray, longest: int = LONGEST, quality: int = 85, subsampling: int = 0) -> str:
    """A data: URL of uint8 [height, width, 3]: PNG if it is small, otherwise a reduced JPEG."""
    if image.shape[0] * image.shape[1] <= _LOSSLESS:
        return html_page.image_url(image)
    small = Image.fromarray(image)
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return html_page.image_url(np.asarray(small), "jpeg", quality=quality, subsampling=subsampling)


def pictures(images: ImageDataset, rows: np.ndarray) -> list[str]:
    """Thumbnails of the images `rows`."""
    return [thumbnail(image) for image in images.gather(rows).numpy()] if len(rows) else []
