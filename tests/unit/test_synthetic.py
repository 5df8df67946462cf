"""The embedded set: the same bytes everywhere, balanced, and neither trivial nor unlearnable."""

import hashlib

import numpy as np
from sklearn.linear_model import RidgeClassifier

from resnet_cifar.config.schema import Data
from resnet_cifar.data.sources import synthetic

DIGESTS = {
    "train": "1058b92c25d9a46a18df0e66f35902495357d91ae8c6e8d0bf3d286bbe5fbee5",
    "test": "5907685c34af6c04f256365f872e6e55e7b2eac2aa048c561c16d30caa62b7b9",
}


def test_the_bytes_never_change():
    contents = synthetic.read(Data(source="synthetic"))
    for split, digest in DIGESTS.items():
        images = getattr(contents, split).images
        assert hashlib.sha256(images.tobytes()).hexdigest() == digest
        assert images.shape == (synthetic.SIZES[split], 32, 32, 3)


def test_every_prefix_is_balanced_and_the_same():
    images, labels = synthetic.draw("train", 130)
    whole, _ = synthetic.draw("train")
    np.testing.assert_array_equal(images, whole[:130])
    assert set(np.bincount(labels).tolist()) == {13}
    assert len(synthetic.CLASS_NAMES) == 10


def test_a_linear_model_on_pixels_stays_far_below_sixty_percent():
    (x, y), (x_test, y_test) = synthetic.draw("train"), synthetic.draw("test")
    flat = x.reshape(len(x), -1) / 255 - 0.5
    model = RidgeClassifier(alpha=100.0, solver="cholesky").fit(flat, y)
    accuracy = model.score(x_test.reshape(len(x_test), -1) / 255 - 0.5, y_test)
    assert 0.12 < accuracy < 0.6


def test_train_and_test_share_no_image():
    train, test = (synthetic.draw(split)[0] for split in ("train", "test"))
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)
