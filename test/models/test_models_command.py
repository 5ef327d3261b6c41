"""`dino-perception models`: its table, and downloads through the real huggingface_hub from a small hub served here."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from dino_perception.cli.__main__ import main
from dino_perception.models import catalog, layouts
from dino_perception.models.checkpoints import untrained

GATED = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.fixture
def command(capsys):
    """The command as the shell runs it, in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["models", *map(str, arguments)])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


class Hub(BaseHTTPRequestHandler):
    """As much of huggingface.co as a download needs: the list of a repository's files, and the files."""

    content = b""
    stated = ""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        if GATED in path and "/resolve/" in path:
            self._send(403, b"", body, {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/"):
            name = path.removeprefix("/api/models/").removesuffix("/revision/main")
            file = {
                "rfilename": "model.safetensors",
                "size": len(self.content),
                "lfs": {"sha256": self.stated, "size": len(self.content), "pointerSize": 1},
            }
            self._send(
                200,
                json.dumps({"id": name, "sha": "0" * 40, "siblings": [file, {"rfilename": "README.md"}]}).encode(),
                body,
                {},
            )
        elif path.endswith("/model.safetensors"):
            self._send(200, self.content, body, {"ETag": '"weights"', "X-Repo-Commit": "0" * 40})
        else:
            self._send(404, b"", body, {"X-Error-Code": "EntryNotFound"})

    def _send(self, status: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    backbone = untrained(catalog.get("eupe-vitt16"))
    Hub.content = save(layouts.to_layout(backbone.state_dict(), backbone.spec, "timm"))
    Hub.stated = hashlib.sha256(Hub.content).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server: str, monkeypatch) -> None:
    """huggingface_hub as HF_ENDPOINT sets it up, which it reads only when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_download_is_fetched_verified_and_loaded(hub, command, tmp_path: Path) -> None:
    code, out, err = command("--download", "eupe-vitt16", "--to", tmp_path, "--json", tmp_path / "r.json")
    assert code == 0, err
    result = json.loads((tmp_path / "r.json").read_text())
    assert Path(result["path"]).read_bytes() == Hub.content
    assert result["weights_hash"] == untrained(catalog.get("eupe-vitt16")).weights_hash and "FAIR non-commercial" in out


def test_a_gated_repository_is_explained_in_one_sentence(hub, command, tmp_path: Path) -> None:
    code, _, err = command("--download", "dinov3-vits16", "--to", tmp_path)
    assert code == 1 and err.strip() == (
        f"dino-perception models: {GATED} is gated: accept its licence at https://huggingface.co/{GATED}, log in with "
        f"'hf auth login' "
        "and try again, or take the open copy with --source timm"
    )


def test_a_download_that_differs_from_what_the_hub_states_is_deleted(hub, command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Hub, "stated", "0" * 64)
    code, _, err = command("--download", "eupe-vitt16", "--to", tmp_path)
    assert code == 1 and "does not have the sha256 that the repository states; it was deleted" in err
    assert not list(tmp_path.glob("*/model.safetensors"))


def test_what_cannot_be_downloaded_is_said(command) -> None:
    assert "there is no backbone 'vit'; the ids are" in command("--download", "vit")[2]
    said = command("--download", "dinov3-vitl16plus")[2]
    assert f"dinov3-vitl16plus is not on huggingface.co; ask for it at {catalog.REQUEST}" in said
    assert (
        "eupe-vitt16 has no source 'huggingface'; accepted are timm"
        in command("--download", "eupe-vitt16", "--source", "huggingface")[2]
    )


def test_the_table_lists_every_backbone_and_the_data_holds_more(command, tmp_path: Path) -> None:
    code, out, err = command("--json", tmp_path / "models.json")
    assert code == 0, err
    data = {row["id"]: row for row in json.loads((tmp_path / "models.json").read_text())}
    assert list(data) == catalog.all_ids() and all(name in out for name in data)
    assert "dinov3-vits16plus *" in out and data["dinov3-vits16plus"]["recommended"]
    small = data["dinov3-vits16"]
    assert small["gflops"] == pytest.approx(78.6, abs=0.1) and small["published"]["ade20k"] == 47.0


def test_a_file_is_identified_and_compared_with_its_name(command, tmp_path: Path) -> None:
    backbone = untrained(catalog.get("eupe-vitt16"))
    tensors = layouts.to_layout(backbone.state_dict(), backbone.spec, "original")
    torch.save(tensors, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    right, wrong = tmp_path / f"tiny-{digest}.pth", tmp_path / "tiny-01234567.pth"
    right.write_bytes(content)
    wrong.write_bytes(content)
    _, out, _ = command("--identify", right)
    assert "a DINOv3 ViT with 12 layers of 192 channels, patch 16, 4 registers, in the original layout" in out
    assert "; fits eupe-vitt16" in out
    assert f"its sha256 begins with {digest}, as its name says" in out
    code, _, err = command("--identify", wrong)
    assert code == 1 and "does not have the sha256 that its name states (01234567...)" in err


def test_parity_writes_its_table_into_the_page(command, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "page.md").write_text("before\n<!-- parity -->\nold\n<!-- end -->\nafter\n")
    code, _, err = command("--parity", "--only", "rover-tiny", "--page", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert code == 0, err
    assert page.startswith("before\n<!-- parity -->\n| backbone |") and page.endswith("<!-- end -->\nafter\n")
    assert "old" not in page
    assert page.count("| rover-tiny | all 8 |") == 3
