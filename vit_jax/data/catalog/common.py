"""Sets of small images, and the others that the paper fine-tunes on."""

from vit_jax.data.catalog.entry import Entry

_TFDS = "https://www.tensorflow.org/datasets/catalog/"

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

ENTRIES = {
    "cifar10": Entry(
        stored_as="cifar10",
        num_classes=10,
        stored={"train": 50_000, "test": 10_000},
        label_names=CIFAR10,
        access="no licence stated; free download",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "cifar100": Entry(
        stored_as="cifar100",
        num_classes=100,
        stored={"train": 50_000, "test": 10_000},
        access="no licence stated; free download",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    "fashion_mnist": Entry(
        stored_as="fashion_mnist",
        num_classes=10,
        stored={"train": 60_000, "test": 10_000},
        label_names=CLOTHES,
        access="MIT",
        source="https://github.com/zalandoresearch/fashion-mnist",
    ),
    "fashion_mnist_mini": Entry(
        stored_as="fashion_mnist_mini",
        num_classes=10,
        stored={"train": 8_000, "test": 2_000},
        label_names=CLOTHES,
        access="MIT; in this package: the test images of Fashion-MNIST",
        source="https://github.com/zalandoresearch/fashion-mnist",
    ),
    "mnist": Entry(
        stored_as="mnist",
        num_classes=10,
        stored={"train": 60_000, "test": 10_000},
        label_names=DIGITS,
        access="CC BY-SA 3.0",
        source="http://yann.lecun.com/exdb/mnist",
    ),
    "oxford_flowers102": Entry(
        stored_as="oxford_flowers102",
        num_classes=102,
        stored={"train": 1_020, "validation": 1_020, "test": 6_149},
        access="no licence stated; free download",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
    ),
    "oxford_iiit_pet": Entry(
        stored_as="oxford_iiit_pet",
        num_classes=37,
        stored={"train": 3_680, "test": 3_669},
        access="CC BY-SA 4.0",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets",
    ),
    "places365_small": Entry(
        stored_as="places365_small",
        num_classes=365,
        stored={"train": 1_803_460, "validation": 36_500, "test": 328_500},
        access="CC BY (images: their owners'); the test split has no labels",
        source=f"{_TFDS}places365_small",
    ),
}
