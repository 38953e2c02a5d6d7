"""The empty prompt from its file and from the text encoder itself."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from anl.errors import UserError
from anl.prior import NoisePrior
from anl.prior_prompt import FILE, empty_prompt
from tests import tiny_priors

TOKENS, WIDTH = tiny_priors.PROMPT


def test_the_stored_embedding_is_read(tmp_path):
    folder = tiny_priors.latent_folder(tmp_path)
    stored = load_file(folder / FILE)["embedding"]
    assert torch.equal(NoisePrior.load(folder).prompt, stored) and stored.shape == (1, TOKENS, WIDTH)
    save_file({"embedding": stored.half()}, folder / FILE)
    assert empty_prompt(folder, "prior", WIDTH).dtype == torch.float32


@pytest.mark.parametrize("tensors, message", [
    ({"other": torch.zeros(1, 2, WIDTH)}, f"prior/{FILE} holds no tensor `embedding`"),
    ({"embedding": torch.zeros(1, 2, WIDTH + 1)}, r"has shape \(1, 2, 9\), but .* asks for \(1, L, 8\)"),
    ({"embedding": torch.zeros(2, WIDTH)}, r"has shape \(2, 8\)"),
    ({"embedding": torch.full((1, 2, WIDTH), float("nan"))}, "embedding holds NaN")])
def test_a_bad_embedding(tmp_path, tensors, message):
    save_file(tensors, tmp_path / FILE)
    with pytest.raises(UserError, match=message):
        empty_prompt(tmp_path, "prior", WIDTH)


def test_a_damaged_embedding(tmp_path):
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(UserError, match=f"prior/{FILE} holds no tensor `embedding`"):
        empty_prompt(tmp_path, "prior", WIDTH)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer"])
def test_a_missing_part_is_named(tmp_path, part):
    (tmp_path / {"text_encoder": "tokenizer", "tokenizer": "text_encoder"}[part]).mkdir()
    with pytest.raises(UserError, match=f"prior: {part}/ is missing; get the whole folder, or put"):
        empty_prompt(tmp_path, "prior", WIDTH)


def test_a_pickled_text_encoder(tmp_path):
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()
    (tmp_path / "text_encoder/pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="prior/text_encoder holds no model.safetensors; convert a copy you trust"):
        empty_prompt(tmp_path, "prior", WIDTH)


def test_the_text_encoder_gives_the_embedding_of_the_padded_empty_prompt(tmp_path):
    from transformers import CLIPTextModel

    folder = tiny_priors.latent_folder(tmp_path, prompt=False)
    tiny_priors.text_encoder(folder)
    tokens = torch.tensor([[10, *[11] * (TOKENS - 1)]])  # start, then end to the full length
    with torch.no_grad():
        expected = CLIPTextModel.from_pretrained(folder / "text_encoder")(tokens)[0]
    frozen = NoisePrior.load(folder)
    torch.testing.assert_close(frozen.prompt, expected)
    assert not frozen.prompt.requires_grad and frozen.noise(torch.zeros(1, 3, 16, 16), 1).shape == (1, 4, 8, 8)


def test_a_text_encoder_that_lacks_a_weight_or_a_file(tmp_path):
    folder = tiny_priors.latent_folder(tmp_path, prompt=False)
    tiny_priors.text_encoder(folder)
    path = folder / "text_encoder/model.safetensors"
    held = load_file(path)
    lost = min(key for key in held if "final_layer_norm" in key)
    save_file({key: value for key, value in held.items() if key != lost}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="text_encoder: the weights lack .*final_layer_norm"):
        NoisePrior.load(folder)
    (folder / "text_encoder/config.json").write_text("{")
    with pytest.raises(UserError, match="is no CLIP that transformers can read"):
        NoisePrior.load(folder)
