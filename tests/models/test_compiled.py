from functools import partialmethod

import pytest
import torch
from torch import nn

from distill_dynamics import Backbone
from distill_dynamics.errors import UserError
from distill_dynamics.models.compiled import check_compiler, compile_blocks

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 12, "num_heads": (1, 1, 2, 2)}
SWIN |= {"drop_path_rate": 0, "num_classes": 5}
RESNET = {"channels": (8, 12, 16, 20), "layers": (2, 2, 2, 2), "num_classes": 5}
MODELS = {
    "deit": ("deit_tiny_patch16_224", VIT),
    "cait": ("cait_xxs24_224", VIT),
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    "resnet": ("resnet18", RESNET),
    "convnext": ("convnext_atto", {"depths": (1, 1, 2, 1), "dims": (8, 12, 16, 20), "num_classes": 5}),
    "no lists": ("regnetx_002", {"num_classes": 5}),
}


@pytest.fixture
def graphs(monkeypatch):
    """Graphs that Dynamo finds, as a list of whether each has a variable size; none is compiled to code."""
    found = []

    def backend(graph, inputs):
        found.append(any(isinstance(one, torch.SymInt) for one in inputs))
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield found
    torch._dynamo.reset()


def made(kind):
    torch.manual_seed(0)
    name, arguments = MODELS[kind]
    return Backbone(name, timm_kwargs=arguments)


def images(count, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def train(student, teacher):
    with torch.no_grad():
        teacher(images(4), [1, 2])
    student.train()(images(4), [1, 2]).logits.sum().backward()
    student.eval()
    with torch.inference_mode():
        student(images(4)), student(images(3))


def test_graphs_are_static_whole_and_the_same_in_a_continued_run(graphs):
    student, teacher = made("deit"), made("cait").eval()
    for model in (student, teacher):
        compile_blocks(model)
    with torch.no_grad():  # its accuracy, with a short last batch
        teacher(images(4)), teacher(images(3))
    train(student, teacher)
    trained = len(graphs)
    train(student, teacher)
    assert len(graphs) == trained
    assert not any(graphs)
    assert not torch._dynamo.utils.counters["graph_break"]
    torch._dynamo.reset()
    graphs.clear()
    again = made("deit"), made("cait").eval()
    for model in again:
        compile_blocks(model)
    train(*again)
    assert not any(graphs)
    assert 0 < len(graphs) < trained


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_names_are_those_of_the_model_as_it_is(graphs, kind):
    size = 64 if kind in ("swin", "no lists", "resnet", "convnext") else 32
    model, compiled = made(kind), made(kind)
    compile_blocks(compiled)
    assert [*compiled.state_dict()] == [*model.state_dict()]
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for count, mode in ((4, True), (3, False)):
            expected = model.train(mode)(images(count, size), [1, -1])
            found = compiled.train(mode)(images(count, size), [1, -1])
            torch.testing.assert_close(found.logits, expected.logits)
            for one, other in zip(found.maps, expected.maps, strict=True):
                torch.testing.assert_close(one, other)
    assert graphs
    assert not any(graphs)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_missing_compiler_is_one_line():
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"model\.compile needs a C\+\+ compiler"),
    ):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))
