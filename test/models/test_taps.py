"""A head says of each tap whether it wants the final norm and the CLS token; one pass gives everybody theirs once."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dino_perception.models import catalog, files
from dino_perception.models.checkpoints import untrained
from dino_perception.models.heads import HeadError, create_head, load_head, save_head
from dino_perception.models.taps import Tap, outputs, places, tap, union

PLAIN, RAW, CLS = Tap(7), Tap(7, norm=False), Tap(7, cls=True)


@pytest.fixture(scope="module", params=["rover-tiny", "dinov2-vits14", "dinov3-convnext-tiny"])
def backbone(request):
    backbone = untrained(catalog.get(request.param))
    backbone.draw()
    return backbone


def pixels(backbone) -> torch.Tensor:
    size = (2, 4 * backbone.spec.stride, 5 * backbone.spec.stride, 3)
    return torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def look(backbone, taps, **options):
    image = pixels(backbone)
    with torch.no_grad():
        return backbone.at(*image.shape[1:3], taps, **options)(image)


def test_the_union_holds_each_map_once_and_cls_where_anybody_reads_it() -> None:
    assert union([Tap(3), CLS, PLAIN, PLAIN, RAW]) == (Tap(3), CLS, RAW)
    assert union([PLAIN]) == (PLAIN,)
    assert places((Tap(3), CLS, RAW), (RAW, CLS)) == [2, 1, 3]
    assert places((Tap(3), CLS, RAW), (PLAIN,)) == [1]
    assert outputs((CLS, RAW)) == [("map", 7, True), ("map", 7, False), ("cls", 7, True)]


def test_one_pass_gives_raw_and_normed_maps_and_only_the_cls_tokens_asked_for(backbone) -> None:
    last = backbone.spec.depth - 1
    taps = union([Tap(1), Tap(last, norm=False, cls=True), Tap(last), Tap(1, norm=False)])
    got = look(backbone, taps)
    assert len(got) == 5
    for norm in (True, False):
        one, end, _, end_cls = look(backbone, (1, last), norm=norm, extras=("cls",))
        assert torch.equal(got[places(taps, [Tap(1, norm)])[0]], one)
        assert torch.equal(got[places(taps, [Tap(last, norm)])[0]], end)
        if not norm:
            assert torch.equal(got[-1], end_cls)


def test_the_graph_of_heads_that_ask_for_nothing_has_no_step_more(backbone) -> None:
    """A norm for each layer tapped, and no slice for a CLS token: what a graph of layers alone always was."""
    image = pixels(backbone)
    graph = backbone.at(*image.shape[1:3], union([Tap(1), Tap(2), Tap(1)]))
    nodes = [n for n in torch.export.export(graph, (image,)).graph.nodes if n.op == "call_function"]
    asked = backbone.at(*image.shape[1:3], union([Tap(1), Tap(2), Tap(1, cls=True), Tap(2, norm=False)]))
    more = [n for n in torch.export.export(asked, (image,)).graph.nodes if n.op == "call_function"]
    norms = sum("layer_norm" in str(n.target) for n in nodes)
    assert sum("layer_norm" in str(n.target) for n in more) == norms and len(more) > len(nodes)
    if not backbone.spec.convolutional:
        assert norms == 2 * 3 + 2, "two a block, one a tap"


def test_files_say_a_layer_alone_where_nothing_is_unusual_and_read_what_older_ones_say(tmp_path) -> None:
    backbone = untrained(catalog.get("rover-tiny"))
    path = tmp_path / "head.safetensors"
    save_head(create_head("segmentation", backbone, "linear", taps=[5]), path)
    tensors, metadata = files.read(path)
    assert metadata["spec"]["taps"] == [5]
    assert load_head("segmentation", backbone, path).spec.taps == (Tap(5),)
    head = create_head("depth", backbone, "linear", taps=[3])
    head.spec = replace(head.spec, taps=(Tap(3, norm=False),))
    save_head(head, path)
    assert load_head("depth", backbone, path).spec.taps == (Tap(3, norm=False),)
    metadata["spec"]["taps"] = [{"layer": 5, "normed": True}]
    files.write(path, tensors, metadata)
    with pytest.raises(HeadError, match="does not describe its head completely"):
        load_head("segmentation", backbone, path)


@pytest.mark.parametrize("wrong", ["7", 7.0, True, None])
def test_a_tap_is_a_whole_number(wrong) -> None:
    with pytest.raises(TypeError, match="a tap is a layer"):
        tap(wrong)
    assert json.loads(json.dumps(RAW.plain)) == {"layer": 7, "norm": False, "cls": False} and tap(RAW.plain) == RAW
