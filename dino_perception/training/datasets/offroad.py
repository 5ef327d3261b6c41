"""AI4Mars, RELLIS-3D and RUGD as they are unpacked, with their own classes and their own division into parts."""

from __future__ import annotations

from pathlib import Path

from dino_perception.models.heads import LABELS, Label
from dino_perception.training.datasets.base import DataError, Dataset, Sample
from dino_perception.training.datasets.folder import PICTURES, files_in, pair
from dino_perception.training.datasets.labels import LabelMap

# --- AI4Mars (Swan et al., CVPR workshops 2021) -------------------------------------------------------------

AI4MARS = LabelMap(LABELS[:4])
"""0 soil, 1 bedrock, 2 sand, 3 big_rock, 255 no label: the values of the released masks."""


def fits_ai4mars(folder: Path) -> bool:
    return bool(_missions(folder))


def read_ai4mars(folder: Path, *, labels: LabelMap | None = None, agreement: int = 1, **_) -> Dataset:
    """AI4Mars as released: `ai4mars-dataset-merged-*` or one of its missions (`msl`, `msl/ncam`, `mer`, ...).

    Masks are PNGs under `labels/train` and, made by experts, `labels/test/masked-gold-min{1,2,3}-100agree`; the file
    name is the picture's, in the test part with `_merged` behind. Pixels of the rover (`images/mxy`) and beyond 30 m
    (`images/rng-30m`) are left out of the training masks; in the test masks they already are. Parts: train, test.
    `agreement` is how many experts must agree in the test part, 1 to 3. Raises DataError.
    """
    missions = _missions(folder)
    samples: list[Sample] = []
    splits: dict[str, list[int]] = {"train": [], "test": []}
    for mission in missions:
        pictures = {path.stem: path for path in files_in(mission / "images", (".jpg", ".jpeg", ".tif")).values()}
        covers = {
            kind: {p.stem: p for p in files_in(mission / "images" / kind, (".png",)).values()}
            for kind in ("mxy", "rng-30m")
        }
        gold = f"masked-gold-min{agreement}-100agree"
        for part, masks in (("train", mission / "labels" / "train"), ("test", mission / "labels" / "test" / gold)):
            for mask in files_in(masks, (".png",)).values():
                stem = mask.stem.removesuffix("_merged")
                if stem not in pictures:
                    raise DataError(f"{mask} is a mask without a picture '{stem}.JPG' under {mission / 'images'}")
                hidden = tuple(
                    covers[kind][name]
                    for kind, name in (("mxy", stem.replace("EDR", "MXY")), ("rng-30m", stem.replace("EDR", "RNG")))
                    if name in covers[kind]
                )
                splits[part].append(len(samples))
                samples.append(pair(pictures[stem], mask, None, labels or AI4MARS, f"{mission.name}/{part}", hidden))
    if not samples:
        raise DataError(f"{folder} looks like AI4Mars, but no masks lie under {missions[0] / 'labels'}")
    return Dataset(f"AI4Mars {folder.name}", tuple(samples), (labels or AI4MARS).labels, False, _filled(splits))


def _missions(folder: Path) -> list[Path]:
    """The folders under `folder` (itself included) that hold `labels/train` or `labels/test` beside `images`."""
    candidates = [folder, *(p for depth in ("*", "*/*", "*/*/*") for p in sorted(folder.glob(depth)) if p.is_dir())]
    return [
        p
        for p in candidates
        if (p / "images").is_dir()
        and ((p / "labels" / "train").is_dir() or any((p / "labels" / "test").glob("masked-gold-*")))
    ]


# --- RELLIS-3D (Jiang et al., ICRA 2021) --------------------------------------------------------------------

# name, colour, mask values. Up- and downhill are grass, as in the dataset's own benchmark.
_RELLIS = (
    ("dirt", (108, 64, 20), (1,)),
    ("grass", (0, 102, 0), (3, 29, 30)),
    ("tree", (0, 255, 0), (4,)),
    ("pole", (0, 153, 153), (5,)),
    ("water", (0, 128, 255), (6, 32)),
    ("sky", (0, 0, 255), (7,)),
    ("vehicle", (255, 255, 0), (8,)),
    ("object", (255, 0, 127), (9,)),
    ("asphalt", (64, 64, 64), (10,)),
    ("building", (255, 0, 0), (12,)),
    ("log", (102, 0, 0), (15,)),
    ("person", (204, 153, 255), (17,)),
    ("fence", (102, 0, 204), (18,)),
    ("bush", (255, 153, 204), (19,)),
    ("concrete", (170, 170, 170), (23,)),
    ("barrier", (41, 121, 255), (27,)),
    ("puddle", (134, 255, 239), (31,)),
    ("mud", (99, 66, 34), (33,)),
    ("rubble", (110, 22, 138), (34,)),
)
RELLIS = LabelMap(
    tuple(Label(i, name, colour) for i, (name, colour, _) in enumerate(_RELLIS)),
    tuple(values for *_, values in _RELLIS),
    (0, 255),
)
"""The 19 classes of RELLIS-3D; its ids have gaps, 0 is void."""


def fits_rellis(folder: Path) -> bool:
    return any(_rellis_root(folder).glob("0000?/pylon_camera_node"))


def read_rellis(folder: Path, *, labels: LabelMap | None = None, **_) -> Dataset:
    """RELLIS-3D as released: `Rellis-3D/0000N/pylon_camera_node/*.jpg` with `pylon_camera_node_label_id/*.png` of the
    same name, and beside them, when downloaded, the division `train.lst`, `val.lst`, `test.lst`. Raises DataError."""
    root, labels = _rellis_root(folder), labels or RELLIS
    samples, index = [], {}
    for drive in sorted(root.glob("0000?")):
        pictures = files_in(drive / "pylon_camera_node", PICTURES)
        for name, mask in files_in(drive / "pylon_camera_node_label_id", (".png",)).items():
            if name not in pictures:
                raise DataError(f"{mask} is a mask without a picture of that name in {drive / 'pylon_camera_node'}")
            index[pictures[name].relative_to(root).as_posix()] = len(samples)
            samples.append(pair(pictures[name], mask, None, labels, drive.name))
    if not samples:
        raise DataError(
            f"{root} holds no masks; unpack the annotations in ID format (pylon_camera_node_label_id) into it"
        )
    splits: dict[str, list[int]] = {}
    for part in ("train", "val", "test"):
        for place in (root, root.parent, folder):
            if (place / f"{part}.lst").is_file():
                splits[part] = _listed(place / f"{part}.lst", index)
                break
    return Dataset(f"RELLIS-3D {folder.name}", tuple(samples), labels.labels, True, _filled(splits))


def _listed(path: Path, index: dict[str, int]) -> list[int]:
    wanted = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    if missing := [name for name in wanted if name not in index]:
        raise DataError(
            f"{path} names {missing[0]}, which is not among the pictures with masks; unpack all five sequences"
        )
    return [index[name] for name in wanted]


def _rellis_root(folder: Path) -> Path:
    return folder / "Rellis-3D" if (folder / "Rellis-3D").is_dir() else folder


# --- RUGD (Wigness et al., IROS 2019) -----------------------------------------------------------------------

_RUGD = (
    ("dirt", (108, 64, 20)),
    ("sand", (255, 229, 204)),
    ("grass", (0, 102, 0)),
    ("tree", (0, 255, 0)),
    ("pole", (0, 153, 153)),
    ("water", (0, 128, 255)),
    ("sky", (0, 0, 255)),
    ("vehicle", (255, 255, 0)),
    ("container", (255, 0, 127)),
    ("asphalt", (64, 64, 64)),
    ("gravel", (255, 128, 0)),
    ("building", (255, 0, 0)),
    ("mulch", (153, 76, 0)),
    ("rock-bed", (102, 102, 0)),
    ("log", (102, 0, 0)),
    ("bicycle", (0, 255, 128)),
    ("person", (204, 153, 255)),
    ("fence", (102, 0, 204)),
    ("bush", (255, 153, 204)),
    ("sign", (0, 102, 102)),
    ("rock", (153, 204, 255)),
    ("bridge", (102, 255, 255)),
    ("concrete", (101, 101, 11)),
    ("picnic-table", (114, 85, 47)),
)
RUGD = LabelMap(
    tuple(Label(i, name, colour) for i, (name, colour) in enumerate(_RUGD)),
    tuple((i + 1,) for i in range(len(_RUGD))),
    (0, 255),
)
"""The 24 classes of RUGD, whose masks are colours; void is black."""

# The division of the paper, by whole videos.
_RUGD_PARTS = {"val": ("park-8", "trail-5"), "test": ("creek", "park-1", "trail-7", "trail-13")}


def fits_rugd(folder: Path) -> bool:
    return (folder / "RUGD_annotations").is_dir()


def read_rugd(folder: Path, *, labels: LabelMap | None = None, **_) -> Dataset:
    """RUGD as released: `RUGD_frames-with-annotations/<video>/*.png` and `RUGD_annotations/<video>/*.png`, coloured.

    Parts are the paper's train, val and test videos. Raises DataError.
    """
    labels = labels or RUGD
    pictures = files_in(folder / "RUGD_frames-with-annotations", (".png",))
    samples: list[Sample] = []
    splits: dict[str, list[int]] = {"train": [], "val": [], "test": []}
    for name, mask in files_in(folder / "RUGD_annotations", (".png",)).items():
        if name not in pictures:
            raise DataError(f"{mask} is a mask without a picture in {folder / 'RUGD_frames-with-annotations'}")
        video = Path(name).parent.as_posix()
        splits[next((part for part, videos in _RUGD_PARTS.items() if video in videos), "train")].append(len(samples))
        samples.append(pair(pictures[name], mask, None, labels, video))
    if not samples:
        raise DataError(f"{folder / 'RUGD_annotations'} holds no masks")
    return Dataset(f"RUGD {folder.name}", tuple(samples), labels.labels, True, _filled(splits))


def _filled(splits: dict[str, list[int]]) -> dict[str, tuple[int, ...]]:
    """The parts that are not empty; none at all when there is only one."""
    filled = {name: tuple(indices) for name, indices in splits.items() if indices}
    return filled if len(filled) > 1 else {}
