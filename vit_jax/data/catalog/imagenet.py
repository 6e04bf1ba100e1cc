"""ImageNet, and the sets that test models trained on it.

All but ImageNet-21k have the 1,000 classes of ILSVRC-2012, numbered in the order of
their WordNet ids; the datasets' own labels.txt holds these ids.
"""

from vit_jax.data.catalog.entry import Entry

_TFDS = "https://www.tensorflow.org/datasets/catalog/"
_IMAGENET = "image-net.org: for research and education, after registration"

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA_CORRUPTIONS = ("gaussian_blur", "saturate", "spatter", "speckle_noise")
SEVERITIES = (1, 2, 3, 4, 5)


def _classes(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


# github.com/hendrycks/natural-adv-examples, eval.py
_CLASSES_OF_A = _classes("""
    6 11 13 15 17 22 23 27 30 37 39 42 47 50 57 70 71 76 79 89 90 94 96 97 99 105
    107 108 110 113 124 125 130 132 143 144 150 151 207 234 235 254 277 283 287 291
    295 298 301 306 307 308 309 310 311 313 314 315 317 319 323 324 326 327 330 334
    335 336 347 361 363 372 378 386 397 400 401 402 404 407 411 416 417 420 425 428
    430 437 438 445 456 457 461 462 470 472 483 486 488 492 496 514 516 528 530 539
    542 543 549 552 557 561 562 569 572 573 575 579 589 606 607 609 614 626 627 640
    641 642 643 658 668 677 682 684 687 701 704 719 736 746 749 752 758 763 765 768
    773 774 776 779 780 786 792 797 802 803 804 813 815 820 823 831 833 835 839 845
    847 850 859 862 870 879 880 888 890 897 900 907 913 924 932 933 934 937 943 945
    947 951 954 956 957 959 971 972 980 981 984 986 987 988
""")
# github.com/hendrycks/imagenet-r, eval.py
_CLASSES_OF_R = _classes("""
    1 2 4 6 8 9 11 13 22 23 26 29 31 39 47 63 71 76 79 84 90 94 96 97 99 100 105 107
    113 122 125 130 132 144 145 147 148 150 151 155 160 161 162 163 171 172 178 187
    195 199 203 207 208 219 231 232 234 235 242 245 247 250 251 254 259 260 263 265
    267 269 276 277 281 288 289 291 292 293 296 299 301 308 309 310 311 314 315 319
    323 327 330 334 335 337 338 340 341 344 347 353 355 361 362 365 366 367 368 372
    388 390 393 397 401 407 413 414 425 428 430 435 437 441 447 448 457 462 463 469
    470 471 472 476 483 487 515 546 555 558 570 579 583 587 593 594 596 609 613 617
    621 629 637 657 658 701 717 724 763 768 774 776 779 780 787 805 812 815 820 824
    833 847 852 866 875 883 889 895 907 928 931 932 933 934 936 937 943 945 947 948
    949 951 953 954 957 963 965 967 980 981 983 988
""")

ENTRIES = {
    "imagenet2012": Entry(
        stored_as="imagenet2012",
        num_classes=1_000,
        stored={"train": 1_281_167, "validation": 50_000, "test": 100_000},
        access=f"{_IMAGENET}; the test split has no labels",
        source=f"{_TFDS}imagenet2012",
        files="train=ILSVRC2012_img_train.tar validation=ILSVRC2012_img_val.tar "
        "--labels=ILSVRC2012_devkit_t12.tar.gz",
    ),
    # TFDS has no builder: `vit_jax.data.prepare` makes it, or any other writer of
    # TFDS's format, with one label an image or several. The paper counts two classes
    # more than the 21,841 of the fall 2011 release.
    "imagenet21k": Entry(
        stored_as="imagenet21k",
        num_classes=21_843,
        stored={"train": 14_197_122},
        access=_IMAGENET,
        source="fall 2011: arXiv:2010.11929, section 4.1; arXiv:2104.10972",
        files="train=FOLDER_OF_TAR_FILES",
    ),
    "imagenet21k_winter21": Entry(
        stored_as="imagenet21k_winter21",
        num_classes=19_167,
        stored={"train": 13_153_500},
        access=_IMAGENET,
        source="winter 2021, as those who hold it count it",
        files="train=winter21_whole.tar",
    ),
    "imagenet2012_real": Entry(
        stored_as="imagenet2012_real",
        num_classes=1_000,
        stored={"validation": 50_000},
        label_key="real_label",
        multi_label=True,
        access=f"labels Apache-2.0; images: {_IMAGENET}",
        source="arXiv:2006.07159",
    ),
    "imagenet_v2": Entry(
        stored_as="imagenet_v2",
        num_classes=1_000,
        stored={"test": 10_000},
        configs=("matched-frequency", "threshold-0.7", "topimages"),
        access="MIT; free download (images: their owners')",
        source="arXiv:1902.10811",
    ),
    "imagenet_a": Entry(
        stored_as="imagenet_a",
        num_classes=1_000,
        stored={"test": 7_500},
        classes_present=_CLASSES_OF_A,
        access="MIT; free download (images: their owners')",
        source="arXiv:1907.07174",
    ),
    "imagenet_r": Entry(
        stored_as="imagenet_r",
        num_classes=1_000,
        stored={"test": 30_000},
        classes_present=_CLASSES_OF_R,
        access="MIT; free download (images: their owners')",
        source="arXiv:2006.16241",
    ),
    "imagenet_sketch": Entry(
        stored_as="imagenet_sketch",
        num_classes=1_000,
        stored={"test": 50_889},
        access="MIT; free download (images: their owners')",
        source="arXiv:1905.13549",
    ),
    "imagenet2012_corrupted": Entry(
        stored_as="imagenet2012_corrupted",
        num_classes=1_000,
        stored={"validation": 50_000},
        configs=tuple(
            f"{corruption}_{severity}"
            for corruption in CORRUPTIONS + EXTRA_CORRUPTIONS
            for severity in SEVERITIES
        ),
        access=f"code Apache-2.0; images: {_IMAGENET}",
        source="arXiv:1903.12261",
    ),
}
