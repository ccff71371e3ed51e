"""Scikit-learn's digits, split by a seed, and the two networks of `digits_networks.py`."""

import jax
import jax.numpy as jnp
import numpy as np

from blackjax_smile import bnn

NUM_CLASSES = 10
VALIDATION_SHARE = 0.1


def load_data(seed: int, test_share: float):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)

    def split(x, y, share):
        return train_test_split(x, y, test_size=share, stratify=y, random_state=seed)

    train_x, test_x, train_y, test_y = split(images, labels, test_share)
    train_x, validation_x, train_y, validation_y = split(
        train_x, train_y, VALIDATION_SHARE / (1 - test_share)
    )
    mean, deviation = train_x.mean(), train_x.std()
    parts = [(train_x, train_y), (validation_x, validation_y), (test_x, test_y)]
    return [(jnp.asarray((x - mean) / deviation), jnp.asarray(y)) for x, y in parts]


def convolve(layer, image, stride: int):
    """A 3 x 3 convolution as a product of matrices: kernels differ between chains."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    height, width = image.shape[0], image.shape[1]
    patches = [
        padded[i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)
    ]
    kernel = layer["kernel"]
    out = jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
    return jax.nn.relu(out + layer["bias"][None, None])


def conv_network() -> bnn.Network:
    shapes = {"conv1": (3, 3, 1, 8), "conv2": (3, 3, 8, 16), "linear": (256, NUM_CLASSES)}

    def init(rng_key):
        keys = dict(zip(shapes, jax.random.split(rng_key, 3), strict=True))
        return {
            name: {
                "kernel": jax.random.normal(keys[name], shape) * (2 / np.prod(shape[:-1])) ** 0.5,
                "bias": jnp.zeros(shape[-1]),
            }
            for name, shape in shapes.items()
        }

    def logits(position, row):
        x = convolve(position["conv1"], row[0].reshape(8, 8, 1), 1)
        x = convolve(position["conv2"], x, 2).reshape(-1)
        return x @ position["linear"]["kernel"] + position["linear"]["bias"]

    mlp = bnn.classification_network(64, NUM_CLASSES)
    return mlp._replace(
        init=init,
        loglikelihood=lambda position, row: jax.nn.log_softmax(logits(position, row))[row[1]],
        predict=lambda position, row: jax.nn.softmax(logits(position, row)),
    )


NETWORKS = {
    "mlp": lambda: bnn.classification_network(64, NUM_CLASSES, (64,)),
    "conv": conv_network,
}
