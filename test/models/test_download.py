"""Released weights come over HTTP from a server here: good, truncated, wrong and interrupted; and from a folder."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from dino_perception.cli.__main__ import main
from dino_perception.models import catalog, head_catalog, head_reference, layouts, weights_folder
from dino_perception.models.checkpoints import load_backbone, untrained
from dino_perception.models.fetch import DownloadError, fetch
from dino_perception.models.heads import HeadError, load_head

CONTENT = bytes(range(256)) * 4096  # 1 MiB
GOOD = hashlib.sha256(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Gives `content`, the asked part of it, or only `cut` bytes of what it promises."""

    content, cut, asked, tag = CONTENT, 0, [], '"one"'
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        wanted, tag = self.headers.get("Range"), self.headers.get("If-Range")
        Server.asked.append(wanted)
        begin = int(wanted[6:-1]) if wanted and tag == Server.tag else 0
        body = Server.content[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", Server.tag)
        self.end_headers()
        self.wfile.write(body[: Server.cut or None])
        if Server.cut:
            self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    Server.content, Server.cut, Server.asked, Server.tag = CONTENT, 0, [], '"one"'
    yield f"http://127.0.0.1:{httpd.server_address[1]}/weights.pth"
    httpd.shutdown()
    httpd.server_close()


def test_a_good_file_comes_whole_is_recorded_and_comes_only_once(server, tmp_path: Path) -> None:
    told = []
    path = tmp_path / "deep" / "weights.pth"
    assert fetch(server, path, sha256=GOOD[:8], progress=lambda *what: told.append(what))
    assert path.read_bytes() == CONTENT and told[-1] == ("weights.pth", len(CONTENT), len(CONTENT))
    assert GOOD in (tmp_path / "deep" / "sha256.json").read_text()
    assert not fetch(server, path) and len(Server.asked) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["sha256.json", "weights.pth"]


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path: Path) -> None:
    Server.cut = 300_000
    with pytest.raises(DownloadError, match="came in part .*try again, it goes on where it stopped"):
        fetch(server, tmp_path / "weights.pth", sha256=GOOD)
    assert not (tmp_path / "weights.pth").exists()
    Server.cut = 0
    assert fetch(server, tmp_path / "weights.pth", sha256=GOOD)
    assert Server.asked == [None, "bytes=300000-"]
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT


def test_a_part_of_a_file_that_has_changed_since_is_not_gone_on_with(server, tmp_path: Path) -> None:
    Server.cut = 300_000
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "weights.pth")
    Server.cut, Server.tag, Server.content = 0, '"two"', CONTENT[::-1]
    assert fetch(server, tmp_path / "weights.pth")
    assert (tmp_path / "weights.pth").read_bytes() == CONTENT[::-1]


def test_a_wrong_file_never_gets_its_name(server, tmp_path: Path) -> None:
    Server.content = CONTENT[:-1] + b"x"
    with pytest.raises(
        DownloadError, match=f"does not have the sha256 {GOOD[:12]}... that it should have; it was deleted"
    ):
        fetch(server, tmp_path / "weights.pth", sha256=GOOD)
    assert list(tmp_path.glob("weights*")) == []
    Server.content = b"<html>please log in</html>"
    with pytest.raises(DownloadError, match="gave a web page"):
        fetch(server, tmp_path / "weights.pth")
    assert list(tmp_path.glob("weights*")) == []


def test_what_has_no_published_hash_is_held_against_its_first_download(server, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    assert fetch(server, path)
    path.write_bytes(CONTENT + b"more")
    with pytest.raises(DownloadError, match="is here but does not have the sha256"):
        fetch(server, path)
    path.unlink()
    Server.content = CONTENT[::-1]
    with pytest.raises(DownloadError, match="does not have the sha256"):
        fetch(server, path)


def test_without_a_network_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="cannot be reached .*without a network, copy weights.pth to") as error:
        fetch("http://127.0.0.1:9/weights.pth", tmp_path / "weights.pth")
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def mirror(tmp_path_factory) -> Path:
    """A folder with DINOv2-S/14 and two of its heads as released, with random weights."""
    folder = tmp_path_factory.mktemp("mirror")
    backbone = untrained(catalog.get("dinov2-vits14"))
    state = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, folder / backbone.spec.file)
    for case in head_reference.CASES:
        if case.file in ("dinov2_vits14_ade20k_linear_head.pth", "dinov2_vits14_kitti_linear4_head.pth"):
            torch.save(case.prepare(case)[1], folder / case.file)
    return folder


def test_models_are_fetched_from_a_folder_and_then_known_by_name(mirror, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(weights_folder.VARIABLE, str(tmp_path / "weights"))
    with pytest.raises(HeadError, match="kitti-linear4_head.pth|kitti_linear4_head.pth is not in .*; fetch it: dino"):
        load_head("depth", untrained(catalog.get("dinov2-vits14")), "kitti-linear4")
    fetched = [
        "models",
        "--download",
        "dinov2-vits14",
        "ade20k",
        "dinov2-vits14/kitti-linear4",
        "--mirror",
        str(mirror),
    ]
    assert main(fetched) == 0, capsys.readouterr().err
    assert main(fetched) == 0 and "here already" in capsys.readouterr().out
    backbone = load_backbone("dinov2-vits14")
    assert backbone.trained
    assert load_head("segmentation", backbone, "ade20k").spec.labels[4].name == "tree"
    assert load_head("depth", backbone, "kitti-linear4").spec.depth_range == (0.001, 80.0)
    with pytest.raises(
        HeadError, match="no released depth head of dinov2-vits14 has that name; its names are nyu-linear"
    ):
        load_head("depth", backbone, "kitty")
    with pytest.raises(HeadError, match="needs the released weights of dinov2-vits14"):
        load_head("segmentation", untrained(catalog.get("dinov2-vits14")), "ade20k")


def test_what_is_not_there_is_said_in_one_sentence(mirror, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv(weights_folder.VARIABLE, str(tmp_path))
    assert main(["models", "--download", "dinov2-vitb14", "--mirror", str(mirror)]) == 1
    assert "dinov2_vitb14_pretrain.pth cannot be copied: No such file" in capsys.readouterr().err
    assert main(["models", "--download", "dinov3-vitl16-chmv2/chmv2"]) == 1
    assert "is for those who asked for it at https://ai.meta.com" in capsys.readouterr().err
    assert main(["models", "--download", "dinov2-vits14/kitti"]) == 1
    assert (
        "there is no head 'dinov2-vits14/kitti'; 'dino-perception models --heads' lists them" in capsys.readouterr().err
    )


def test_the_catalogue_of_heads_is_sound(capsys) -> None:
    heads = head_catalog.all_heads()
    assert len({e.id for e in heads}) == len({e.file for e in heads}) == len(heads) == 50
    for entry in heads:
        assert entry.backbone in catalog.all_ids() and entry.licence
        assert entry.address.startswith("https://") or (entry.licence == "DINOv3 License" and not entry.address)
        assert bool(entry.labels) == (entry.task != "depth") != bool(entry.depth_range)
    assert main(["models", "--heads"]) == 0
    out = capsys.readouterr().out
    assert all(entry.id in out for entry in heads) and "models --download dinov2-vits14 ade20k kitti-dpt" in out
