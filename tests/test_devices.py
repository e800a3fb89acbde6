"""Every trainer keeps what it computes with on its device; benchmarks/other_device.py stands in for a GPU."""
import kinds
import pytest
import ranks
import torch

from benchmarks import other_device

FAST = ("CoOp",)  # test_trainers_parts.py makes a step of most methods


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("devices")  # in it Shapes is drawn once


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
                                  for name in ranks.cases()])
def test_another_device_gives_the_numbers_of_the_cpu(name, folder):
    def run(place):
        return ranks.make_run(folder / f"{name}, {place}", *ranks.cases()[name], ranks.FOREIGN.get(name, ()),
                              ranks.STEPS.get(name))

    on_cpu = run("cpu")
    with other_device.runs_on_it():
        elsewhere = run("elsewhere")
    losses, learned, counted, counted_here, same = ranks.compare(on_cpu, elsewhere)
    assert losses < ranks.TOLERANCE and learned < ranks.tolerance(name) and counted == counted_here and same
    assert on_cpu["accuracy"] == elsewhere["accuracy"]


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "LoRAWrapped" else pytest.mark.slow)
                                  for name in kinds.KINDS])
def test_methods_of_every_kind_stay_on_their_device(name, folder):
    """Weights that change, learning at test time, views, patch tokens."""
    on_cpu = kinds.small_runs(folder / "cpu", [name])[name]
    with other_device.runs_on_it():
        elsewhere = kinds.small_runs(folder / "elsewhere", [name])[name]
    losses, learned, *_ = ranks.compare(on_cpu, elsewhere)
    assert losses < ranks.TOLERANCE and learned < ranks.TOLERANCE
    torch.testing.assert_close(on_cpu["logits"], elsewhere["logits"], rtol=1e-4, atol=1e-4)


def test_the_device_is_as_strict_as_a_gpu():
    with other_device.Device():
        here, there = torch.ones(3, 4), torch.ones(3, 4, device="meta").requires_grad_()
        (there * 2).sum().backward()
        assert there.grad.cpu().tolist() == [[2.0] * 4] * 3 and there.grad.sum().item() == 24
        assert (there + torch.tensor(1.0))[torch.tensor([0, 2])].shape == (2, 4)
        for mistake in (lambda: there + here, lambda: there @ here.T, lambda: here[there.long()],
                        lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="needs its tensors on one device"):
                mistake()
        with pytest.raises(TypeError, match="NumPy"):
            there.numpy()
