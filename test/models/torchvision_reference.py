"""What torchvision's FCOS makes of the arrays of an .npz: run apart, as torchvision must not be seen by anybody else.

    python torchvision_reference.py FOLDER IN.npz OUT.npz

FOLDER holds torchvision's wheel, unpacked. Its Python is used as it is; its compiled operators, of which it comes with
those for CUDA, are declared, and non-maximum suppression, the only one that is called, is OpenCV's.
"""

import sys

import cv2
import numpy as np
import torch


def declared() -> None:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", suppressed, "CPU")
    for name in ("qnms", "roi_align", "_roi_align_backward", "roi_pool", "_roi_pool_backward", "ps_roi_align",
                 "_ps_roi_align_backward", "ps_roi_pool", "_ps_roi_pool_backward", "deform_conv2d",
                 "_deform_conv2d_backward"):  # fmt: skip
        library.define(f"{name}(Tensor x) -> Tensor")
    globals()["kept_alive"] = library


def suppressed(boxes: torch.Tensor, scores: torch.Tensor, limit: float) -> torch.Tensor:
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(sides.tolist(), scores.tolist(), 0.0, float(limit))
    return torch.from_numpy(np.array(kept, np.int64).reshape(-1))


def main(folder: str, given: str, out: str) -> None:
    sys.path.insert(0, folder)
    declared()
    from torchvision import extension
    from torchvision.models.detection.fcos import FCOS

    extension._has_ops = lambda: True
    data = {name: torch.from_numpy(array) for name, array in np.load(given).items()}
    backbone = torch.nn.Identity()
    backbone.out_channels = 32
    limits = dict(score_thresh=float(data["floor"]), nms_thresh=float(data["overlap"]))
    most = dict(detections_per_img=10**6, topk_candidates=10**6)
    model = FCOS(backbone, num_classes=data["logits"].shape[2], **limits, **most)
    anchors, sizes = data["anchors"], data["sizes"].tolist()
    heads = {"cls_logits": data["logits"], "bbox_regression": data["strides"], "bbox_ctrness": data["centre"]}
    images = len(data["logits"])
    targets = [{"boxes": data[f"boxes{i}"], "labels": data[f"labels{i}"]} for i in range(images)]
    losses = model.compute_loss(targets, heads, [anchors] * images, sizes)
    parts = {name: list(tensor.split(sizes, dim=1)) for name, tensor in heads.items()}
    size = tuple(int(side) for side in data["image"])
    found = model.postprocess_detections(parts, [list(anchors.split(sizes))] * images, [size] * images)
    arrays = {f"loss_{name}": value.detach().numpy() for name, value in losses.items()}
    for i, each in enumerate(found):
        arrays.update({f"{name}{i}": value.detach().numpy() for name, value in each.items()})
    np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
