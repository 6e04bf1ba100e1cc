"""Model types of Hugging Face that cannot be read here, and why.

By `model_type` of config.json, as transformers names them.
"""

from vit_jax.errors import UserError

_ROTARY = "rotary position embeddings"
_CLIP = "LayerNorm before the first layer, and text"
_SWIN = "attention within windows"
_VIDEO = "video"
_PARTS = "a part of another network"
# The family, and what it has that no model of ours has.
_FAMILIES = {
    "aimv2": ("AIMv2", "RMSNorm and SwiGLU"),
    "aimv2_vision_model": ("AIMv2", "RMSNorm and SwiGLU"),
    "beit": ("BEiT", "relative position bias"),
    "clip": ("CLIP", _CLIP),
    "clip_vision_model": ("CLIP", _CLIP),
    "chinese_clip": ("Chinese-CLIP", _CLIP),
    "clipseg": ("CLIPSeg", _CLIP),
    "cvt": ("CvT", "convolutions that make queries and keys"),
    "data2vec-vision": ("Data2Vec", "relative position bias"),
    "depth_anything": ("Depth Anything", _PARTS),
    "dinov3_vit": ("DINOv3", _ROTARY),
    "dinov3_convnext": ("DINOv3's ConvNeXt", "convolutions"),
    "donut-swin": ("Swin Transformer", _SWIN),
    "dpt": ("DPT", _PARTS),
    "efficientformer": ("EfficientFormer", "convolutions"),
    "eomt": ("EoMT", "queries for segmentation"),
    "eomt_dinov3": ("EoMT", _ROTARY),
    "focalnet": ("FocalNet", "modulation in place of attention"),
    "hiera": ("Hiera", "pooling between stages"),
    "levit": ("LeViT", "BatchNorm and stages"),
    "maskformer-swin": ("Swin Transformer", _SWIN),
    "mobilevit": ("MobileViT", "convolutions"),
    "mobilevitv2": ("MobileViT", "convolutions"),
    "owlvit": ("OWL-ViT", _CLIP),
    "owlv2": ("OWL-ViT", _CLIP),
    "pixtral": ("Pixtral", _ROTARY),
    "poolformer": ("PoolFormer", "pooling in place of attention"),
    "pvt": ("PVT", "spatial reduction"),
    "pvt_v2": ("PVT", "spatial reduction"),
    "sam": ("SAM", "relative positions and windows"),
    "sam_vision_model": ("SAM", "relative positions and windows"),
    "sam2": ("SAM 2", "pooling between stages"),
    "sam2_vision_model": ("SAM 2", "pooling between stages"),
    "segformer": ("SegFormer", "spatial reduction"),
    "siglip2": ("SigLIP 2 for images of any size", "patches that are padded"),
    "siglip2_vision_model": ("SigLIP 2 for images of any size", "padded patches"),
    "swin": ("Swin Transformer", _SWIN),
    "swin2sr": ("Swin Transformer", _SWIN),
    "swinv2": ("Swin Transformer", _SWIN),
    "timesformer": ("TimeSformer", _VIDEO),
    "timm_wrapper": ("a model of timm within transformers", "save it with timm itself"),
    "videomae": ("VideoMAE", _VIDEO),
    "vit_hybrid": ("a hybrid in transformers", "BiT; timm's and the paper's are read"),
    "vit_mae": (
        "ViTMAE",
        "it masks patches at random; transformers.ViTModel reads its encoder, and what "
        "that saves can be read",
    ),
    "vitdet": ("ViTDet", "relative positions and windows"),
    "vitpose": ("ViTPose", _PARTS),
    "vitpose_backbone": ("ViTPose", "experts in its MLPs"),
    "vivit": ("ViViT", _VIDEO),
    "yolos": ("YOLOS", "tokens for detection"),
}


def refuse(kind: str, supported: tuple[str, ...]) -> None:
    """Refuses a model type, by the name of its family if that is known.

    Args:
      kind: `model_type` of config.json.
      supported: those that can be read.

    Raises:
      UserError: in any case.
    """
    names = ", ".join(supported)
    family, reason = kind, "no model of ours computes the same"
    if kind in _FAMILIES:
        family, reason = _FAMILIES[kind]
    raise UserError(
        f'config.json has model_type "{kind}": {family} is not supported: {reason}. Of '
        f"Hugging Face {names} can be read"
    )
