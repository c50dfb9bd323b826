"""Locating a diffusion model: layouts, kinds of weights, the hub's cache, and errors."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import ClassVar

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from hypothesis import given
from hypothesis import strategies as st
from networks import COMMIT, LINEAR, cached, contents

from cryobench.errors import CryobenchError, DataError, ParameterError
from cryobench.priors import model_folder
from cryobench.priors.model_folder import find_model, layout_of
from cryobench.priors.schedule import stated_schedule

UNET = {"_class_name": "UNet2DModel", "sample_size": 16, "in_channels": 1, "out_channels": 1}
WHOLE = "diffusion_pytorch_model.safetensors"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = "diffusion_pytorch_model.safetensors.index.json"
HALF, PICKLE = "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.bin"
PIPELINE = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": json.dumps(LINEAR).encode(),
    "unet/config.json": json.dumps(UNET).encode(),
    f"unet/{WHOLE}": b"weights",
}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def refused(call, kind: type[CryobenchError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------------------- layouts


@given(st.permutations([WHOLE, *SHARDS, HALF, PICKLE, INDEX, "other.bin"]))
def test_the_choice_of_weights_does_not_depend_on_the_order_of_the_files(names: list[str]):
    """Preferred, as by diffusers: shards with an index, one file, a variant, a pickle."""
    for chosen in (SHARDS, [WHOLE], [HALF], [PICKLE]):
        layout = layout_of(["config.json", *names], "x", pickle=True)
        assert list(layout.weights) == chosen
        assert layout.index == (INDEX if chosen == SHARDS else None)
        assert layout.variant == ("fp16" if chosen == [HALF] else None)
        assert layout.pickled == (chosen == [PICKLE])
        names = [name for name in names if name not in (*chosen, layout.index)]


@pytest.mark.parametrize("folder", ["", "unet/"])
def test_the_network_is_in_unet_or_at_the_root(folder):
    names = [f"{folder}config.json", f"{folder}{WHOLE}", "elsewhere/config.json", f"checkpoint-500/unet/{WHOLE}"]
    layout = layout_of(names, "x", pickle=False)
    assert (layout.config, layout.weights, layout.schedule) == (names[0], (names[1],), None)
    for schedule in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        assert layout_of([*names, schedule], "x", pickle=False).schedule == schedule


def test_averaged_weights_are_those_of_a_checkpoint_and_not_of_a_pipeline():
    averaged = ["unet_ema/config.json", f"unet_ema/{WHOLE}"]
    raw = ["unet/config.json", f"unet/{WHOLE}"]
    for names, config, beside in (
        (averaged, "unet_ema/config.json", None),
        ([*averaged, *raw], "unet_ema/config.json", "unet"),
        ([*averaged, *raw, "model_index.json"], "unet/config.json", "unet_ema"),
        ([*raw, averaged[1], "model_index.json"], "unet/config.json", None),
        (["config.json", WHOLE, *averaged], "config.json", None),
    ):
        layout = layout_of(names, "x", pickle=False)
        assert (layout.config, layout.weights[0], layout.beside) == (
            config,
            config.replace("config.json", WHOLE),
            beside,
        )
    for part, said in zip(averaged, ("no weights; expected unet_ema/diff", "lacks unet_ema/config.json"), strict=True):
        assert said in refused(lambda part=part: layout_of([*raw, part], "x", pickle=False))


def test_a_checkpoint_file_of_a_training_run_is_refused_with_its_folder(tmp_path):
    lay(tmp_path, PIPELINE | {"checkpoint.pt": b""})
    assert f"is a file; give embedded, the folder of a diffusers model, or hf:OWNER/NAME; the model of its folder is "\
           f"{tmp_path}" in refused(lambda: find_model(str(tmp_path / "checkpoint.pt")))  # fmt: skip


def test_a_pipeline_is_found_beside_other_files():
    layout = layout_of(["config.json", PICKLE, WHOLE, *PIPELINE], "x", pickle=False)
    assert (layout.config, layout.weights) == ("unet/config.json", (f"unet/{WHOLE}",))


def test_shards_are_read_in_order_and_all_of_them():
    assert layout_of(["config.json", INDEX, *reversed(SHARDS)], "x", pickle=False).weights == tuple(SHARDS)
    for names in ([INDEX, SHARDS[1]], SHARDS, [INDEX, WHOLE]):
        message = refused(lambda names=names: layout_of(["config.json", *names], "x", pickle=False))
        assert "expected one file, or all shards and their index" in message
    assert "1 of 2 files" in refused(lambda: layout_of(["config.json", INDEX, SHARDS[1]], "x", pickle=False))
    # a complete variant is preferred to incomplete shards
    assert layout_of(["config.json", SHARDS[1], HALF], "x", pickle=False).weights == (HALF,)
    variant = [name.replace("model-", "model.bf16-") for name in SHARDS]
    index = INDEX.replace(".json", ".bf16.json")
    layout = layout_of(["config.json", index, *variant], "x", pickle=False)
    assert (layout.weights, layout.index, layout.variant) == (tuple(variant), index, "bf16")


def test_a_pickle_is_refused_unless_allowed_and_never_preferred():
    message = refused(lambda: layout_of(["config.json", PICKLE], "x", pickle=False))
    assert "the weights of x are a pickle" in message
    assert "give pickle=true" in message
    assert layout_of(["config.json", PICKLE, WHOLE], "x", pickle=False).weights == (WHOLE,)
    assert layout_of(["config.json", PICKLE, WHOLE], "x", pickle=True).weights == (WHOLE,)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "x is not a diffusers model: it lacks unet/config.json and config.json"),
        (["unet/config.json"], "x has no weights; expected unet/diffusion_pytorch_model.safetensors"),
        (["unet/config.json", WHOLE], "x has no weights; expected unet/diffusion_pytorch_model.safetensors"),
        (["config.json", "model.safetensors"], "x has no weights; expected diffusion_pytorch_model.safetensors"),
    ],
)
def test_folders_without_a_model_are_refused(names, said):
    assert said in refused(lambda: layout_of(names, "x", pickle=True))


# ------------------------------------------------------------------------------------------------------- folders


def test_all_spellings_of_a_folder_are_found(tmp_path, monkeypatch):
    lay(tmp_path / "models" / "a", PIPELINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = (tmp_path / "models" / "a").resolve()
    for text in ("models/a", "./models/a", "~/models/a", str(wanted), "models/a/", "models/../models/a"):
        folder = find_model(text)
        assert folder.root.resolve() == wanted
        assert folder.root.is_absolute()
        assert folder.scheduler_config == LINEAR
        assert folder.unet_config == UNET
    monkeypatch.chdir("/")
    assert find_model("models/a", base=tmp_path).root == wanted


def test_paths_that_are_not_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").write_bytes(b"")
    assert "nothing is not a folder; give embedded, the folder of" in refused(lambda: find_model("nothing"))
    assert "weights is a file; give" in refused(lambda: find_model("weights"))
    assert "give diffusion:hf:owner/name" in refused(lambda: find_model("owner/name"))
    assert "cannot be found" in refused(lambda: find_model("~nobody-of-this-name/x"))


@pytest.mark.parametrize("text", ["hf:", "hf:name", "hf:owner/name/more", "hf:owner/na me", "hf:/name"])
def test_a_repository_is_owner_and_name(text):
    assert "expected hf:OWNER/NAME" in refused(lambda: find_model(text), ParameterError)


def test_an_invalid_repository_name_is_a_parameter_error():
    assert "cannot be a repository" in refused(lambda: find_model("hf:owner/a..b"), ParameterError)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_configuration_that_is_not_a_json_object_is_refused(tmp_path, text):
    folder = find_model(str(lay(tmp_path, PIPELINE | {"unet/config.json": text.encode()})))
    assert "unet/config.json" in refused(lambda: folder.unet_config)


def test_a_network_of_another_class_is_refused(tmp_path):
    config = json.dumps(UNET | {"_class_name": "UNet2DConditionModel"}).encode()
    folder = find_model(str(lay(tmp_path, PIPELINE | {"unet/config.json": config})))
    assert "is the configuration of a UNet2DConditionModel; expected a diffusers UNet2DModel" in refused(
        lambda: folder.unet_config
    )


def test_truncated_weights_and_git_lfs_pointers_are_refused(tmp_path):
    import numpy as np
    from safetensors.numpy import save

    good = save({"a": np.zeros(100, np.float32)})
    path = tmp_path / "unet" / WHOLE
    find_model(str(lay(tmp_path, PIPELINE | {f"unet/{WHOLE}": good}))).check_weights()
    for content in (good[:-1], good[:20], b"", b"weights"):
        path.write_bytes(content)
        assert "cannot be read as safetensors" in refused(find_model(str(tmp_path)).check_weights)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 400\n")
    assert "run `git lfs pull`" in refused(find_model(str(tmp_path)).check_weights)


# ------------------------------------------------------------------------------------------------- the hub's cache


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and an unreachable network."""

    def unreachable(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    return tmp_path / "hub"


@pytest.fixture
def offline(cache, monkeypatch) -> Path:
    """A cache without a hub: any request fails the test."""

    def asked(*_, **__):
        pytest.fail("asked the network")  # not an Exception: no handler can catch it

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, asked)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", asked)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    return cache


@pytest.mark.parametrize(
    "files",
    [
        PIPELINE,
        {name: PIPELINE[name] for name in PIPELINE if name != "model_index.json"},
        {"config.json": PIPELINE["unet/config.json"], WHOLE: b"weights", "scheduler_config.json": b"{}"},
    ],
)
def test_a_complete_cached_model_is_used_without_a_network(offline, files):
    snapshot = cached(offline, "owner/name", files)
    folder = find_model("hf:owner/name")
    assert folder.root == snapshot
    assert [path.read_bytes() for path in folder.weights] == [b"weights"]


def test_a_cached_network_needs_its_schedule_from_the_hub_or_stated(offline, monkeypatch):
    """A network alone is what `UNet2DModel.from_pretrained` leaves in the cache."""
    snapshot = cached(offline, "owner/name", {"config.json": PIPELINE["unet/config.json"], WHOLE: b"weights"})
    stated = stated_schedule("linear:1000") | {"prediction_type": "epsilon"}
    folder = find_model("hf:owner/name", stated=stated)
    assert (folder.root, folder.scheduler_config) == (snapshot, stated)

    def unreachable(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    assert "has a network but no scheduler/scheduler_config.json" in refused(lambda: find_model("hf:owner/name"))


def test_the_averaged_weights_of_a_checkpoint_on_the_hub_are_downloaded(cache, monkeypatch):
    averaged = {"unet_ema/config.json": PIPELINE["unet/config.json"], f"unet_ema/{WHOLE}": b"averaged"}
    files = {name: content for name, content in PIPELINE.items() if name != "model_index.json"} | averaged
    hub = Hub(cache, files, monkeypatch)
    for _ in range(2):  # from the hub, then from the cache
        folder = find_model("hf:owner/name")
        assert [path.read_bytes() for path in folder.weights] == [b"averaged"]
        assert "those of unet_ema/, not of unet/" in folder.notes[0]
    assert len(hub.downloads) == 1
    assert f"unet/{WHOLE}" not in hub.downloads[0]


def test_a_network_on_the_hub_without_a_schedule_is_refused(cache, monkeypatch):
    Hub(cache, {"config.json": PIPELINE["unet/config.json"], WHOLE: b"weights"}, monkeypatch)
    assert "hf:owner/name has a network without a noise schedule" in refused(
        lambda: find_model("hf:owner/name").scheduler_config
    )


def test_a_revision_is_a_branch_or_a_commit(offline):
    other = "d" * 40
    one, two = cached(offline, "o/n", PIPELINE), cached(offline, "o/n", PIPELINE, commit=other, ref="v2")
    for revision, snapshot in {"main": one, COMMIT: one, "v2": two, other: two}.items():
        assert find_model("hf:o/n", revision=revision).root == snapshot


def test_without_copy_and_network_the_error_says_how_to_fetch(cache):
    message = refused(lambda: find_model("hf:owner/name", revision="v2"))
    assert message.startswith(f"diffusion: hf:owner/name is not in the local cache {cache} and cannot be downloaded")
    assert "`hf download owner/name --revision v2` and copy the cache here" in message
    assert "`hf download owner/name --revision v2 --local-dir FOLDER` and give the folder as prior" in message
    assert "--revision" not in refused(lambda: find_model("hf:owner/name"))


def test_offline_mode_is_respected(cache, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "OfflineModeIsEnabled" in refused(lambda: find_model("hf:owner/name"))


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (f"unet/{WHOLE}", "has no weights"),
        ("unet/config.json", "is not a diffusers model"),
        ("scheduler/scheduler_config.json", "has a network but no scheduler/scheduler_config.json"),
    ],
)
@pytest.mark.parametrize("link", [True, False])
def test_an_incomplete_copy_is_refused(cache, missing, said, link):
    snapshot = cached(cache, "owner/name", PIPELINE)
    (snapshot / missing).resolve().unlink() if link else (snapshot / missing).unlink()
    message = refused(lambda: find_model("hf:owner/name"))
    assert said in message
    assert f"in the local cache {cache}, and the rest cannot be downloaded" in message
    assert "hf download owner/name" in message


def test_a_cached_pickle_is_refused_and_the_error_says_what_to_do(cache):
    files = {("unet/" + PICKLE if name.endswith("tensors") else name): PIPELINE[name] for name in PIPELINE}
    cached(cache, "owner/name", files)
    assert "give pickle=true" in refused(lambda: find_model("hf:owner/name"))
    assert find_model("hf:owner/name", pickle=True).layout.pickled


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.RepositoryNotFoundError, "there is no model repository owner/name on the hub, or it is private"),
        (errors.GatedRepoError, "owner/name is gated; ask for access on the hub"),
        (errors.RevisionNotFoundError, "owner/name has no revision v2; give an existing one"),
    ],
)
def test_a_missing_repository_is_distinguished_from_an_unreachable_hub(cache, monkeypatch, error, said):
    def answer(*_, **__):
        raise error("from the hub", response=SimpleNamespace(headers={}, request=None, status_code=404))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    message = refused(lambda: find_model("hf:owner/name", revision="v2"))
    assert said in message
    assert "hf download" not in message


class Hub:
    """A hub of one repository, which records the requested files."""

    def __init__(self, cache: Path, files: dict[str, bytes], monkeypatch):
        self.cache, self.files, self.downloads = cache, files, []
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def info(self, name, *, revision, timeout):
        assert (name, revision) == ("owner/name", "main")
        assert timeout <= 10
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in self.files])

    def download(self, name, *, revision, allow_patterns, etag_timeout):
        taken = [file for file in self.files if file in allow_patterns]
        self.downloads.append(sorted(taken))
        return str(cached(self.cache, name, {file: self.files[file] for file in taken}))


def test_only_the_files_of_the_model_are_downloaded(cache, monkeypatch):
    more = {"README.md": b"", f"unet/{HALF}": b"", f"unet/{PICKLE}": b"", f"checkpoint-500/unet/{WHOLE}": b"",
            "checkpoint-500/unet/config.json": b"", f"unet_ema/{WHOLE}": b"", "cryobench.json": b"{}"}  # fmt: skip
    hub = Hub(cache, PIPELINE | more, monkeypatch)
    folder = find_model("hf:owner/name", pickle=True)
    assert [path.read_bytes() for path in folder.weights] == [b"weights"]
    assert hub.downloads == [sorted([*PIPELINE, "cryobench.json"])]
    find_model("hf:owner/name")
    assert len(hub.downloads) == 1


@pytest.mark.parametrize("missing", [f"unet/{WHOLE}", "unet/config.json", "scheduler/scheduler_config.json"])
def test_files_missing_in_the_cache_are_downloaded(cache, monkeypatch, missing):
    hub = Hub(cache, PIPELINE, monkeypatch)
    cached(cache, "owner/name", {name: PIPELINE[name] for name in PIPELINE if name != missing})
    folder = find_model("hf:owner/name")
    assert len(hub.downloads) == 1
    assert folder.scheduler_config == LINEAR
    assert folder.weights[0].read_bytes() == b"weights"


def test_a_repository_without_a_model_is_refused_before_the_download(cache, monkeypatch):
    hub = Hub(cache, {"README.md": b"", "unet/config.json": b"", f"unet/{PICKLE}": b""}, monkeypatch)
    assert "are a pickle" in refused(lambda: find_model("hf:owner/name"))
    hub.files = {"README.md": b""}
    assert "is not a diffusers model" in refused(lambda: find_model("hf:owner/name"))
    assert hub.downloads == []


class Serving(BaseHTTPRequestHandler):
    """The hub's answers to a download, for a repository owner/name with PIPELINE and more."""

    files: ClassVar = PIPELINE | {"README.md": b"", f"checkpoint-500/unet/{WHOLE}": b""}

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api/models/owner/name/revision/main":
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/models/owner/name/tree/"):
            rows = [{"type": "file", "path": name, "size": len(content), "oid": self.oid(name)}
                    for name, content in self.files.items()]  # fmt: skip
            self.answer(json.dumps(rows).encode())
        else:
            name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
            self.answer(self.files[name], ETag=f'"{self.oid(name)}"', **{"X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, content: bytes, **headers: str):
        self.send_response(200)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def oid(self, name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()

    def log_message(self, *_):
        """Nothing on the screen."""


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    """endpoint(address): a hub at this address, and an empty cache."""

    def at(address: tuple[str, int]) -> Path:
        url = f"http://{address[0]}:{address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        return tmp_path / "hub"

    return at


def test_the_real_client_downloads_the_files_of_the_model_only(endpoint):
    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        cache = endpoint(server.server_address)
        folder = find_model("hf:owner/name")
        server.shutdown()
    assert contents(folder.root) == PIPELINE
    assert folder.root.is_relative_to(cache)
    assert folder.scheduler_config == LINEAR
    assert find_model("hf:owner/name") == folder  # and without the server


def test_a_hub_that_does_not_answer_times_out(endpoint, monkeypatch):
    monkeypatch.setattr(model_folder, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and says nothing
        endpoint(silent.getsockname())
        start = time.perf_counter()
        assert "Timeout" in refused(lambda: find_model("hf:owner/name"))
        assert time.perf_counter() - start < 5


def test_finding_a_model_imports_neither_torch_nor_diffusers():
    code = ("import sys; from cryobench.priors.model_folder import find_model, layout_of\n"
            "assert not {'torch', 'diffusers', 'huggingface_hub'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
