"""`dino-perception compile` leaves engines that the node finds, and says how right they are."""

from __future__ import annotations

import json

import pytest

from dino_perception.cli.__main__ import main
from dino_perception.engines.openvino import OpenVino
from dino_perception.perception.perceiver import Perceiver
from dino_perception.perception.settings import Settings

pytestmark = pytest.mark.skipif(bool(OpenVino().unavailable()), reason=OpenVino().unavailable() or "-")

SMALL = {"input_height": 64, "input_width": 96, "output_height": 32, "output_width": 48}
FLAGS = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder, the report, and the page of one run."""
    folder = tmp_path_factory.mktemp("compile")
    page = folder / "page.md"
    page.write_text("before\n<!-- parity -->\nold\n<!-- end -->\nafter\n")
    code = main(
        [
            "compile",
            *FLAGS,
            "--cache",
            str(folder / "cache"),
            "--json",
            str(folder / "report.json"),
            "--page",
            str(page),
        ]
    )
    return code, folder, json.loads((folder / "report.json").read_text())[0], page.read_text()


def test_it_reports_every_graph_within_the_gate(built):
    code, _, report, _ = built
    assert code == 0 and report["built"] and report["second_start_from_cache"]
    graphs = {graph["name"]: graph for graph in report["graphs"]}
    assert set(graphs) == {"backbone", "segmentation", "depth", "correspondences"}
    assert len(graphs["backbone"]["parity"]["outputs"]) == 4
    assert all(graph["parity"]["frames"] == 3 and not graph["overridden"] for graph in graphs.values())


def test_it_compares_the_whole_chain(built):
    chain = built[2]["chain"]
    assert chain["frames"] == 3 and chain["label_agreement"] > 0.95 and chain["depth_abs_rel"] < 0.05


def test_the_node_finds_what_was_built(built):
    perceiver = Perceiver(Settings.from_flat(SMALL), cache=built[1] / "cache", report=lambda line: None)
    assert perceiver.describe()["from_cache"]
    perceiver.close()


def test_the_page_gets_the_table_and_keeps_the_rest(built):
    page = built[3]
    assert page.startswith("before\n<!-- parity -->\n| backbone") and page.endswith("<!-- end -->\nafter\n")
    assert "| rover-tiny | 64x96 | openvino" in page and "old" not in page


def test_list_shows_what_fits_this_machine_and_clean_empties(built, capsys, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    for path in (built[1] / "cache").iterdir():
        (cache / path.name).write_bytes(path.read_bytes())
    record = next(cache.glob("depth*.json"))
    record.write_text(record.read_text().replace('"openvino": "', '"openvino": "1999-'))
    assert main(["compile", "--cache", str(cache), "--list", "--json", str(tmp_path / "list.json")]) == 0
    listed = {entry["description"]["name"]: entry for entry in json.loads((tmp_path / "list.json").read_text())}
    assert [listed[name]["fits"] for name in ("backbone", "depth")] == [True, False]
    assert main(["compile", "--cache", str(cache), "--clean"]) == 0
    assert "removed 8 files" in capsys.readouterr().out and not list(cache.iterdir())


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--frames", "/nowhere"], "--frames /nowhere holds no pictures"),
        (["--batch", "0"], "--batch 0 cannot be read"),
        (["--set", "engine"], "--set engine is no NAME=VALUE"),
        (["--set", "engine=tpu"], "'engine' is 'tpu'; accepted are"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(flags, sentence, capsys, tmp_path):
    assert main(["compile", *FLAGS, "--cache", str(tmp_path), *flags]) == 1
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_a_page_without_a_place_is_an_error(tmp_path):
    from dino_perception.measuring.markdown_tables import PageError, fill

    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(PageError, match="no place for the table"):
        fill(page, "parity", ["| a |"])
