"""SEED-2 against the original code's outputs on reproducible random weights (`tests/fixtures/seed2`)."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seed_edge.errors import CheckpointError
from seed_edge.models.checkpoints import load_seed_tokenizer, read_state
from seed_edge.preprocess import Preprocessing, open_image

REFERENCE = Path(__file__).parent.parent / "fixtures" / "seed2"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load(folder, vit=None):
    return load_seed_tokenizer(folder, vit, lambda text: None)


@pytest.fixture(scope="module")
def model(seed2):
    return load(seed2)


def test_codes_and_embeddings_are_those_of_the_original_code(model, maker):
    stored = np.load(REFERENCE / "tiny-7.npz")
    values = maker["pixel_values"](
        maker["GEOMETRIES"]["tiny"], len(stored["codes"]), int(stored["pixel_values_seed"])
    )
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(values)).numpy()
        assert np.array_equal(codes, stored["codes"])
        for given, wanted in (("codes", "image_embeds"), ("random_codes", "random_image_embeds")):
            found = model.decode(torch.from_numpy(stored[given])).numpy()
            assert np.abs(found - stored[wanted]).max() < 1e-4


@pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "name", ["landscape_rgb.png", "portrait_rgb.png", "small_grey.png", "square_rgb.png"]
)
def test_image_files_give_the_codes_of_the_original_code(model, name, resize_filter):
    wanted = json.loads((REFERENCE / "tiny-7-images.json").read_text())["images"][name][resize_filter]
    values = Preprocessing(56, resize_filter, MEAN, STD)([open_image(REFERENCE / name)])
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(values))
        assert codes[0].tolist() == wanted["codes"]
        assert np.abs(model.decode(codes)[0, :8].numpy() - wanted["image_embed_head"]).max() < 1e-4


def same(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_a_merged_safetensors_file_is_the_same_model(model, seed2, tmp_path):
    merged = dict(read_state(seed2 / "seed_quantizer.pt"))
    merged |= {
        f"visual_encoder.{name}": tensor for name, tensor in read_state(seed2 / "eva_vit_g.pth").items()
    }
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, tmp_path / "seed2.safetensors")
    shutil.copy(seed2 / "geometry.json", tmp_path)
    assert same(load(tmp_path), model)


def test_the_vit_may_lie_elsewhere_and_half_precision_is_read(model, seed2, tmp_path):
    state = {
        name: t.half() if t.is_floating_point() else t
        for name, t in read_state(seed2 / "seed_quantizer.pt").items()
    }
    torch.save(state, tmp_path / "seed_quantizer.pt")
    shutil.copy(seed2 / "geometry.json", tmp_path)
    with pytest.raises(CheckpointError, match="--vit"):
        load(tmp_path)
    loaded = load(tmp_path, seed2 / "eva_vit_g.pth")
    assert loaded.query_tokens.dtype == torch.float32
    assert torch.allclose(loaded.query_tokens, model.query_tokens, atol=2e-3)


def test_tensors_that_are_not_needed_are_counted(seed2):
    said = []
    load_seed_tokenizer(seed2, None, said.append)
    assert said == ["image tokenizer: 171 tensors read, 50 in the files not used"]


@pytest.mark.parametrize("file", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_every_missing_or_misshapen_tensor_is_named_with_its_file(seed2, tmp_path, file):
    shutil.copytree(seed2, tmp_path / "c")
    state = dict(read_state(seed2 / file))
    names = (
        ["ln_vision.bias", "quantize.embedding.weight"]
        if file == "seed_quantizer.pt"
        else ["cls_token", "blocks.2.mlp.fc2.bias"]
    )
    for name in names:
        torch.save({k: v for k, v in state.items() if k != name}, tmp_path / "c" / file)
        with pytest.raises(CheckpointError, match=f"{file}: tensor {name} is missing"):
            load(tmp_path / "c")
        torch.save(state | {name: torch.zeros(3, 5)}, tmp_path / "c" / file)
        with pytest.raises(CheckpointError, match=rf"{file}: tensor {name} has shape \(3, 5\)"):
            load(tmp_path / "c")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(5000)])
@pytest.mark.parametrize("file", ["seed_quantizer.pt", "eva_vit_g.pth"])
def test_damaged_files_are_named(seed2, tmp_path, file, content):
    shutil.copytree(seed2, tmp_path / "c")
    (tmp_path / "c" / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=file) as caught:
        load(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named(seed2, tmp_path):
    shutil.copytree(seed2, tmp_path / "c")
    path = tmp_path / "c" / "seed_quantizer.pt"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"seed_quantizer\.pt is damaged"):
        load(tmp_path / "c")


class Malicious:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_but_tensors_is_unpickled(seed2, tmp_path, capsys):
    shutil.copytree(seed2, tmp_path / "c")
    torch.save({"a": Malicious()}, tmp_path / "c" / "seed_quantizer.pt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(tmp_path / "c")
    (tmp_path / "c" / "seed_quantizer.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(CheckpointError):
        load(tmp_path / "c")
    assert "executed" not in capsys.readouterr().out


def test_swapped_files_are_refused(seed2, tmp_path):
    shutil.copytree(seed2, tmp_path / "c")
    shutil.copy(seed2 / "eva_vit_g.pth", tmp_path / "c" / "seed_quantizer.pt")
    with pytest.raises(CheckpointError, match=r"seed_quantizer\.pt: tensor .* is missing"):
        load(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"holds none of seed_quantizer\.pt"):
        load(tmp_path)
