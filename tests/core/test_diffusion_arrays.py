"""The arrays of a diffusion: measured before they are unpacked, and refused in one line where they are not what they must be."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from seed_edge.diffusion_arrays import read_noise_arrays
from seed_edge.errors import BundleError, PromptError
from seed_edge.runtime.schedulers import Schedule

DIM = 4
GOOD = {
    "alphas_cumprod": np.linspace(0.99, 0.01, 1000),
    "mean": np.zeros(DIM, "f4"),
    "std": np.ones(DIM, "f4"),
    "noise_alpha": np.float64(0.999),
}


def saved(path, packing=zipfile.ZIP_STORED, **changes):
    """The file, with some arrays in place of its own; None leaves one out, bytes are put in as they are."""
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, array in (GOOD | changes).items():
            if array is not None:
                buffer = io.BytesIO()
                if not isinstance(array, bytes):
                    np.save(buffer, array, allow_pickle=True)
                archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else buffer.getvalue())
    return path


def test_what_the_exporter_writes_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", **GOOD)
    found = read_noise_arrays(tmp_path / "a.npz", DIM, 1)
    assert all(np.array_equal(found[name], array) for name, array in GOOD.items())
    np.savez_compressed(tmp_path / "b.npz", **GOOD)
    assert read_noise_arrays(tmp_path / "b.npz", DIM, 1)["mean"].shape == (DIM,)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": None},
        {"more": np.zeros(3)},
        {"mean": np.zeros(5, "f4")},
        {"mean": np.zeros((1, DIM), "f4")},
        {"mean": np.zeros(DIM, "c16")},
        {"mean": np.zeros(DIM, "i8")},
        {"mean": np.array(["a"] * DIM)},
        {"mean": np.array([None] * DIM)},
        {"mean": np.full(DIM, np.nan, "f4")},
        {"mean": np.zeros(0)},
        {"mean": np.zeros(DIM, ">f4")},
        {"mean": b""},
        {"mean": b"\x93NUMPY\x01\x00\xff\xff{"},
        {"mean": b"\x93NUMPY\x03\x00\xff\xff\xff\x7f{"},
        {"std": np.zeros(DIM)},
        {"std": np.full(DIM, -1.0)},
        {"std": np.full(DIM, np.inf)},
        {"noise_alpha": np.zeros(1)},
        {"noise_alpha": np.float64(0)},
        {"noise_alpha": np.float64(1.5)},
        {"alphas_cumprod": np.linspace(0.01, 0.99, 1000)},
        {"alphas_cumprod": np.linspace(1.5, 0.01, 1000)},
        {"alphas_cumprod": np.zeros(0)},
        {"alphas_cumprod": np.float64(0.5)},
        {"alphas_cumprod": np.zeros((2, 2))},
        {"alphas_cumprod": np.linspace(0.99, 0.01, 20_000)},
    ],
)
def test_other_arrays_are_refused_in_one_line(tmp_path, changes):
    with pytest.raises(BundleError, match="is not a valid noise schedule file") as error:
        read_noise_arrays(saved(tmp_path / "a.npz", **changes), DIM, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packings_are_refused(tmp_path, packing):
    with pytest.raises(BundleError, match="has compression method"):
        read_noise_arrays(saved(tmp_path / "a.npz", packing), DIM, 1)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = saved(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, mean=np.zeros(20_000_000))
    assert path.stat().st_size < 500_000
    tracemalloc.start()
    with pytest.raises(BundleError, match="160,000,"):
        read_noise_arrays(path, DIM, 1)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_size_that_lies_is_refused(tmp_path):
    """The directory says 160 bytes, the member holds a megabyte."""
    raw = bytearray(saved(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, mean=np.zeros(1 << 17)).read_bytes())
    size = (1 << 20) + 128
    raw = raw.replace(size.to_bytes(4, "little"), (160).to_bytes(4, "little"))
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(BundleError, match="is not a valid noise schedule file"):
        read_noise_arrays(tmp_path / "a.npz", DIM, 1)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(BundleError, match="is not a valid noise schedule file"):
        read_noise_arrays(tmp_path / "a.npz", DIM, 1)


def test_encrypted_members_and_offsets_beyond_the_table_are_refused(tmp_path):
    raw = bytearray(saved(tmp_path / "a.npz").read_bytes())
    at = raw.rfind(b"PK\x01\x02")
    raw[at + 8] |= 1  # in the directory: encrypted
    (tmp_path / "b.npz").write_bytes(raw)
    with pytest.raises(BundleError, match="encrypted"):
        read_noise_arrays(tmp_path / "b.npz", DIM, 1)
    with pytest.raises(BundleError, match="steps_offset 1000 is not below"):
        read_noise_arrays(tmp_path / "a.npz", DIM, 1000)


@pytest.mark.parametrize(("count", "steps", "offset"), [(10, 11, 0), (1000, 500, 3), (1000, 2, 500)])
def test_steps_that_a_schedule_does_not_have_are_refused(count, steps, offset):
    with pytest.raises(PromptError, match="do not fit"):
        Schedule(np.linspace(0.99, 0.01, count), offset, False).spaced_timesteps(steps)
    assert len(Schedule(np.linspace(0.99, 0.01, 1000), 1, False).spaced_timesteps(500)) == 500
