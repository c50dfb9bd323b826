"""Files on the hub: the cached copy is read; failures are reported in one line, and soon."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants, errors

from cryobench.errors import DataError, ParameterError
from cryobench.sources.hub import Hub

COMMIT, OTHER = "a" * 40, "b" * 40


def images(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 8, 8)).astype(np.float32)


def put(cache: Path, kind: str, commit: str, array: np.ndarray, *, ref: str | None = None, linked: bool = True) -> None:
    """Lay a file out as the hub's client does: a blob, a snapshot that links to it, and a branch."""
    repository = cache / f"{kind}s--owner--stacks"
    blob, pointer = repository / "blobs" / commit, repository / "snapshots" / commit / "sub" / "a.npy"
    for folder in (blob.parent, pointer.parent, repository / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    with (blob if linked else pointer).open("wb") as file:
        np.save(file, array)
    if linked:
        pointer.symlink_to(blob)
    if ref:
        (repository / "refs" / ref).write_text(commit)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and a network on which every request fails."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    return tmp_path / "hub"


def fail(*_, **__):
    raise OSError("no network in this test")


def refused(hub: Hub) -> str:
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        hub.open()
    assert time.perf_counter() - start < 8
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("linked", [True, False])
@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_the_cached_copy_is_read_without_a_network(cache, kind, linked):
    put(cache, kind, COMMIT, images(), ref="main", linked=linked)
    stack = Hub("owner/stacks/sub/a.npy", kind=kind).open()
    assert (len(stack), stack.shape, stack.label) == (3, (8, 8), "a.npy")
    np.testing.assert_array_equal(stack.read(2), images()[2])
    other = "model" if kind == "dataset" else "dataset"
    assert "not in the local cache" in refused(Hub("owner/stacks/sub/a.npy", kind=other))


def test_a_revision_is_a_branch_or_a_commit(cache):
    put(cache, "dataset", COMMIT, images(1), ref="main")
    put(cache, "dataset", OTHER, images(2), ref="v2")
    for revision, seed in {"main": 1, "v2": 2, COMMIT: 1, OTHER: 2}.items():
        stack = Hub("owner/stacks/sub/a.npy", revision=revision).open()
        np.testing.assert_array_equal(stack.read(0), images(seed)[0])
    assert "--revision v3" in refused(Hub("owner/stacks/sub/a.npy", revision="v3"))


def test_images_are_resized_and_inverted_as_by_the_file_source(cache):
    put(cache, "dataset", COMMIT, images(), ref="main")
    stack = Hub("owner/stacks/sub/a.npy", size=8, invert=True).open()
    np.testing.assert_array_equal(stack.read(1), -images()[1])
    assert Hub("owner/stacks/sub/a.npy", size=4).open().shape == (4, 4)


def test_without_copy_and_network_the_error_says_how_to_fetch_the_file(cache):
    message = refused(Hub("owner/stacks/sub/a.npy"))
    assert message.startswith(f"hub:owner/stacks/sub/a.npy is not in the local cache {cache}")
    assert "`hf download owner/stacks sub/a.npy --repo-type dataset --local-dir .`" in message
    assert "pass it with --data" in message


def test_offline_mode_is_respected(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "OfflineModeIsEnabled" in refused(Hub("owner/stacks/sub/a.npy", kind="model"))


def test_a_hub_that_does_not_answer_times_out(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts the connection and does not answer
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        assert "Timeout" in refused(Hub("owner/stacks/sub/a.npy"))


def test_a_closed_port_is_an_unreachable_hub(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as once:
        endpoint = f"http://127.0.0.1:{once.getsockname()[1]}"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    assert "ConnectError" in refused(Hub("owner/stacks/sub/a.npy"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError, "there is no dataset repository owner/stacks"),
        (errors.GatedRepoError, "owner/stacks is gated"),
        (errors.RevisionNotFoundError, "owner/stacks has no revision v2"),
        (errors.RemoteEntryNotFoundError, "owner/stacks has no file sub/a.npy at revision v2"),
    ],
)
def test_a_missing_repository_is_distinguished_from_an_unreachable_hub(cache, monkeypatch, error, said):
    def answer(*_, **__):
        raise error("from the hub", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    message = refused(Hub("owner/stacks/sub/a.npy", revision="v2"))
    assert said in message
    assert "hf download" not in message


def test_a_download_is_opened(cache, tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", images(5))
    asked = []

    def download(repository, file, **options):
        asked.append((repository, file, options["repo_type"], options["revision"]))
        return str(tmp_path / "a.npy")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    stack = Hub("owner/stacks/sub/a.npy", kind="model", revision="v2").open()
    np.testing.assert_array_equal(stack.read(0), images(5)[0])
    assert asked == [("owner/stacks", "sub/a.npy", "model", "v2")]


@pytest.mark.parametrize(
    "path",
    ["", "a.npy", "owner/a.npy", "owner/stacks/", "owner//a.npy", "/owner/stacks/a.npy", "o/n/../x.npy", "o/n/a b"],
)
def test_a_path_is_owner_name_and_file(path):
    with pytest.raises(ParameterError, match="expected OWNER/NAME/FILE"):
        Hub(path)


def test_invalid_values_are_refused():
    with pytest.raises(ParameterError, match="size must be at least 1"):
        Hub("owner/stacks/a.npy", size=0)
    with pytest.raises(ParameterError, match="revision is empty"):
        Hub("owner/stacks/a.npy", revision=" ")
