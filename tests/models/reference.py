"""Equations (1)-(4) of the paper a second time: plain NumPy, one image at a time.

Written from the paper (arXiv:2010.11929) and its appendix A, not from vit_jax/models;
in the precision of its inputs. Parameters are read by their published names.
"""

import math

import numpy as np


def layer_norm(x, p, eps):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * p["scale"] + p.get("bias", 0)


def gelu(x, kind):
    if kind == "erf":
        erf = np.vectorize(math.erf, otypes=[x.dtype])
        return x * (1 + erf(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention(target, source, p, eps):
    """Appendix A, one head after the other. Returns [q, d] and weights [h, q, s]."""
    heads = p["query"]["kernel"].shape[1]
    out, weights = 0, []
    for h in range(heads):
        q = target @ p["query"]["kernel"][:, h] + p["query"]["bias"][h]
        k = source @ p["key"]["kernel"][:, h] + p["key"]["bias"][h]
        v = source @ p["value"]["kernel"][:, h] + p["value"]["bias"][h]
        if "query_ln" in p:
            q, k = layer_norm(q, p["query_ln"], eps), layer_norm(k, p["key_ln"], eps)
        a = softmax(q @ k.T / math.sqrt(q.shape[-1]))  # (6)
        out = out + (a @ v) @ p["out"]["kernel"][h]  # (7), (8)
        weights.append(a)
    return out + p["out"]["bias"], np.stack(weights)


def mlp(x, p, kind):
    hidden = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], kind)
    return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def patches(image, size):
    """Patches as rows of pixels, from left to right and top to bottom."""
    height, width = size
    return np.stack(
        [
            image[top : top + height, left : left + width].reshape(-1)
            for top in range(0, image.shape[0], height)
            for left in range(0, image.shape[1], width)
        ]
    )


def sincos2d(rows, columns, d):
    table = np.zeros((rows * columns, d))
    for n in range(rows * columns):
        y, x = divmod(n, columns)
        for i in range(d // 4):
            omega = 10_000 ** (-i / (d // 4 - 1))
            angles = x * omega, y * omega
            parts = [f(angle) for angle in angles for f in (math.sin, math.cos)]
            for part, value in enumerate(parts):
                table[n, part * (d // 4) + i] = value
    return table


def vit(image, p, *, patch_size, pool="token", posemb="learn", gelu="tanh", eps=1e-6):
    """Logits of one image [H, W, 3], and features by the names of `capture`."""
    features = {}
    kernel = p["embedding"]["kernel"]
    z = patches(image, patch_size) @ kernel.reshape(-1, kernel.shape[-1])
    z = z + p["embedding"]["bias"]
    rows, columns = (a // b for a, b in zip(image.shape, patch_size, strict=False))
    if posemb == "sincos2d":
        z = z + sincos2d(rows, columns, z.shape[-1]).astype(z.dtype)
    if "cls" in p:
        z = np.concatenate([p["cls"][0], z])
    t = p["Transformer"]
    if posemb == "learn":
        z = z + t["posembed_input"]["pos_embedding"][0]  # (1)
    features["posembed_input"] = z

    for i in range(sum(name.startswith("encoderblock_") for name in t)):
        b = t[f"encoderblock_{i}"]
        y = layer_norm(z, b["LayerNorm_0"], eps)
        y, weights = attention(y, y, b["MultiHeadDotProductAttention_0"], eps)
        z = y + z  # (2)
        z = mlp(layer_norm(z, b["LayerNorm_1"], eps), b["MlpBlock_0"], gelu) + z  # (3)
        features |= {f"encoderblock_{i}": z, f"encoderblock_{i}/attention": weights}

    y = z
    if "encoder_norm" in t:
        y = features["encoder_norm"] = layer_norm(z, t["encoder_norm"], eps)  # (4)
    if pool == "token":
        y = y[0]
    elif pool == "gap":
        y = y[-rows * columns :].mean(axis=0)
    elif pool == "map":
        m = p["MAPHead_0"]
        x, weights = attention(
            m["probe"][0], y, m["MultiHeadDotProductAttention_0"], eps
        )
        y = x + mlp(layer_norm(x, m["LayerNorm_0"], eps), m["MlpBlock_0"], gelu)
        y, features["MAPHead_0/attention"] = y[0], weights
    if "fc_norm" in p:
        y = layer_norm(y, p["fc_norm"], eps)
    if "pre_logits" in p:
        y = np.tanh(y @ p["pre_logits"]["kernel"] + p["pre_logits"]["bias"])
    features["pre_logits"] = y
    return y @ p["head"]["kernel"] + p["head"]["bias"], features
