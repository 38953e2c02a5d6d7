import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from anl.io import UserError
from anl.models import checkpoint
from anl.models.detector import Detector

SETTINGS = {"backbone": "test_resnet", "stride": 8, "stem_width": 4, "size": 16, "attention": "relation",
            "attention_dim": 8}


class Linear(nn.Module):
    """A network of another kind."""

    kind = "linear"

    def __init__(self, width):
        super().__init__()
        self.settings = {"width": width}
        self.layer = nn.Linear(width, 1)


def refuse(**settings):
    raise UserError("models/prior is missing; run `dvc repro prior`")


BUILDERS = {"detector": Detector, "linear": Linear}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "model.safetensors"


def test_a_detector_comes_back_with_its_scores(path):
    detector = Detector(**SETTINGS, seed=3)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    detector.train()(x)  # moves the running statistics
    checkpoint.save(detector.to(memory_format=torch.channels_last), path)
    again = checkpoint.load(path, BUILDERS, "cpu")
    assert not again.training and again.settings == detector.settings
    assert torch.equal(again.to(memory_format=torch.channels_last)(x).logit, detector.eval()(x).logit)


def test_half_precision_keeps_the_scores_of_a_rounded_network(path):
    detector = checkpoint.round_to_half(Detector(**SETTINGS, seed=3)).eval()
    checkpoint.save(detector, path)
    size = path.stat().st_size
    checkpoint.save(detector, path, half=True)
    again, x = checkpoint.load(path, BUILDERS, "cpu"), torch.rand(4, 3, 16, 16) * 2 - 1
    assert path.stat().st_size < 0.75 * size and again.classifier.weight.dtype == torch.float32
    assert torch.equal(again(x).logit, detector(x).logit)


def test_an_inference_network_comes_back_as_the_plain_detector(path):
    small = Detector(**SETTINGS | {"attention": "erase"}).for_inference()
    checkpoint.save(small, path)
    again = checkpoint.load(path, BUILDERS, "cpu")
    assert again.head is None and again.settings["attention"] == "none"


def test_another_kind_of_network(path):
    checkpoint.save(Linear(3), path)
    assert isinstance(checkpoint.load(path, BUILDERS, "cpu"), Linear)
    with pytest.raises(UserError, match="holds a network of kind 'linear', not one of detector; delete it"):
        checkpoint.load(path, {"detector": Detector}, "cpu")


def test_equal_networks_are_equal_files(path):
    """Metadata of several entries would be written in no fixed order; 16 equal files in a row are then one in 32,768."""
    network, files = Linear(3), set()
    for _ in range(16):
        checkpoint.save(network, path)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_missing_file(path):
    with pytest.raises(UserError, match="model.safetensors is missing; train the run"):
        checkpoint.load(path, BUILDERS, "cpu")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_truncated_file(path, keep):
    checkpoint.save(Linear(64), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is not a saved network") as caught:
        checkpoint.load(path, BUILDERS, "cpu")
    assert "\n" not in str(caught.value)


def test_a_pickle_is_not_opened(path):
    path.parent.mkdir()
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="is not a saved network"):
        checkpoint.load(path, BUILDERS, "cpu")


def test_foreign_safetensors(path):
    path.parent.mkdir()
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="no 'network' in its metadata"):
        checkpoint.load(path, BUILDERS, "cpu")
    save_file({"weight": torch.zeros(1)}, path, metadata={"network": "[1"})
    with pytest.raises(UserError, match="is not a saved network"):
        checkpoint.load(path, BUILDERS, "cpu")


def test_weights_and_settings_that_disagree(path):
    network = Linear(3)
    network.settings = {"width": 4}
    checkpoint.save(network, path)
    with pytest.raises(UserError, match="does not hold the network that its settings describe") as caught:
        checkpoint.load(path, BUILDERS, "cpu")
    assert "\n" not in str(caught.value)


def test_settings_of_a_stranger_do_not_reach_the_network(path):
    detector = Detector(**SETTINGS)
    detector.settings["backbone"] = "hf-hub:someone/model"
    checkpoint.save(detector, path)
    with pytest.raises(UserError, match="cannot be rebuilt: detector.backbone 'hf-hub:someone/model' is not a timm"):
        checkpoint.load(path, BUILDERS, "cpu")


def test_a_builders_own_error_keeps_its_fix(path):
    checkpoint.save(Linear(3), path)
    with pytest.raises(UserError, match=r"cannot be rebuilt: models/prior is missing; run `dvc repro prior`"):
        checkpoint.load(path, {"linear": refuse}, "cpu")
