"""Pulling models from a server that stands in for the Hugging Face hub."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, clip_files, git_digest
from patience import LAST_NET_SECONDS, until

from clipql.encode import hub, models
from clipql.errors import ModelError

FILES = clip_files()
WANTED = ["config.json", "preprocessor_config.json", "README.md", "tokenizer.json"]
NETWORKS = ["onnx/text_model.onnx", "onnx/vision_model.onnx"]
TEXT = "onnx/text_model.onnx"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CLIPQL_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "WAITS", (0.01, 0.01))
    with HubServer() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def blob(tmp_path: Path, file: str) -> Path:
    name = hashlib.sha256(FILES[file]).hexdigest() if file.endswith(".onnx") else git_digest(FILES[file])
    return tmp_path / "hf" / "hub" / "models--tiny--clip" / "blobs" / name


def test_only_the_files_that_are_needed_are_fetched_and_no_pickle(server: HubServer, tmp_path: Path) -> None:
    model = models.pull("tiny/clip")
    assert server.asked() == WANTED + NETWORKS
    assert model.path == tmp_path / "hf" / "hub" / "models--tiny--clip" / "snapshots" / COMMIT
    assert (model.model, model.dimension, model.context, model.precision) == ("tiny/clip", 8, 16, "fp32")
    for file in WANTED + NETWORKS:
        assert (model.path / file).read_bytes() == FILES[file]
    assert models.find("tiny/clip") == model
    assert models.licence(model) == "mit"
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def test_another_precision_is_fetched_where_it_is_asked_for(server: HubServer) -> None:
    model = models.pull("tiny/clip", precision="int8")
    assert server.asked() == [*WANTED, "onnx/text_model_quantized.onnx", "onnx/vision_model_quantized.onnx"]
    assert model.text.read_bytes() == b"t" * 1000


def test_openais_name_is_fetched_from_its_export_and_keeps_its_name(server: HubServer) -> None:
    server.models = {"Xenova/clip-vit-base-patch32": clip_files()}
    assert models.pull("ViT-B/32").model == "openai/clip-vit-base-patch32"
    assert models.find().model == "openai/clip-vit-base-patch32"
    assert models.find("Xenova/clip-vit-base-patch32") == models.find("openai/clip-vit-base-patch32")


def test_a_second_pull_fetches_nothing(server: HubServer) -> None:
    first = models.pull("tiny/clip")
    server.requests.clear()
    assert models.pull("tiny/clip") == first
    assert server.asked() == []


def test_a_download_that_breaks_off_goes_on_where_it_was(server: HubServer) -> None:
    server.cut[TEXT] = [100_000, 50_000]
    steps: list[hub.PullProgress] = []
    model = models.pull("tiny/clip", progress=steps.append)
    assert model.text.read_bytes() == FILES[TEXT]
    ranges = [r.range for r in server.requests if r.path.endswith(TEXT)]
    assert ranges == [None, "bytes=100000-", "bytes=150000-"]
    total = sum(len(FILES[file]) for file in WANTED + NETWORKS)
    assert (steps[-1].done, steps[-1].size, steps[-1].fetched) == (total, total, total)
    assert [s.file for s in steps if s.finished] == WANTED + NETWORKS


def test_the_next_pull_goes_on_where_a_broken_one_was(server: HubServer, tmp_path: Path) -> None:
    server.cut[TEXT] = [100_000, 0, 0, 0]
    with pytest.raises(ModelError, match=r"cannot be reached or breaks off .* is kept; pull again to continue"):
        models.pull("tiny/clip")
    partial = blob(tmp_path, TEXT)
    assert partial.with_name(partial.name + ".incomplete").stat().st_size == 100_000
    with pytest.raises(ModelError, match=r"tiny/clip is not on this machine"):
        models.find("tiny/clip")
    server.requests.clear()
    assert models.pull("tiny/clip").text.read_bytes() == FILES[TEXT]
    assert [r.range for r in server.requests if r.path.endswith(TEXT)] == ["bytes=100000-"]
    assert server.asked() == NETWORKS


def test_a_server_without_ranges_sends_the_file_anew(server: HubServer) -> None:
    server.ranges = False
    server.cut[TEXT] = [100_000]
    assert models.pull("tiny/clip").text.read_bytes() == FILES[TEXT]


@pytest.mark.parametrize("file", [TEXT, "config.json"])
def test_a_file_that_comes_altered_is_named_removed_and_fetched_again(
    server: HubServer, tmp_path: Path, file: str
) -> None:
    server.altered = {file}
    digest = blob(tmp_path, file).name
    with pytest.raises(ModelError, match=rf"{file} of tiny/clip came with the .*; the hub says {digest}") as caught:
        models.pull("tiny/clip")
    assert "What came was removed; pull again" in str(caught.value)
    assert not blob(tmp_path, file).exists()
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    server.altered = set()
    assert (models.pull("tiny/clip").path / file).read_bytes() == FILES[file]


def test_a_file_that_was_damaged_on_disk_is_fetched_anew(server: HubServer, tmp_path: Path) -> None:
    models.pull("tiny/clip")
    blob(tmp_path, TEXT).write_bytes(b"\xff" + FILES[TEXT][1:])
    server.requests.clear()
    assert models.pull("tiny/clip").text.read_bytes() == FILES[TEXT]
    assert server.asked() == [TEXT]


def test_a_silent_server_is_given_up_and_what_came_is_kept(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = hub.repository("tiny/clip")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.5")
    monkeypatch.setattr(hub, "WAITS", ())
    server.silent[TEXT] = LAST_NET_SECONDS
    partial = blob(tmp_path, TEXT)
    partial = partial.with_name(partial.name + ".incomplete")

    def half_has_come() -> bool:  # a slow machine may be silent for so long before that
        with pytest.raises(ModelError, match=r"was silent for 0.5 s.*pull again to continue"):
            hub.fetch(source, [file for file in source.files if file.path == TEXT])
        return partial.exists() and partial.stat().st_size > 0

    until(half_has_come, "half of the file has come")
    assert partial.read_bytes() == FILES[TEXT][: len(FILES[TEXT]) // 2]
    server.silent = {}
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(LAST_NET_SECONDS))
    assert models.pull("tiny/clip").text.read_bytes() == FILES[TEXT]


@pytest.mark.parametrize(
    ("where", "status", "code", "message"),
    [
        ("api", 404, "RepoNotFound", r"there is no model tiny/clip at .*\(HTTP 404\), or it is private"),
        ("api", 401, "", r"there is no model tiny/clip at .*\(HTTP 401\), or it is private.*HF_TOKEN"),
        ("api", 403, "GatedRepo", r"tiny/clip is gated at .*\(HTTP 403\): ask for access"),
        ("api", 403, "", r"\(HTTP 403\) refuses tiny/clip to this token"),
        ("api", 500, "", r"cannot pull tiny/clip: .*\(HTTP 500\) says Internal Server Error; try again later"),
        (TEXT, 404, "EntryNotFound", r"\(HTTP 404\) lists a file of tiny/clip but does not have it: .*text_model.onnx"),
        (TEXT, 401, "GatedRepo", r"tiny/clip is gated"),
        (TEXT, 503, "", r"\(HTTP 503\) says Service Unavailable"),
    ],
)
def test_what_the_hub_refuses_is_said(server: HubServer, where: str, status: int, code: str, message: str) -> None:
    server.status[where] = (status, code)
    with pytest.raises(ModelError, match=message):
        models.pull("tiny/clip")


def test_a_model_that_is_not_there_is_named(server: HubServer) -> None:
    with pytest.raises(ModelError, match="there is no model nobody/nothing at"):
        models.pull("nobody/nothing")
    with pytest.raises(ModelError, match="'a b' is neither a folder nor a name on Hugging Face"):
        models.pull("a b")


def test_a_model_without_onnx_files_is_refused_before_anything_is_fetched(server: HubServer) -> None:
    server.models["tiny/clip"] = {k: v for k, v in FILES.items() if not k.startswith("onnx/")}
    with pytest.raises(ModelError, match=r"lacks onnx/text_model.onnx, onnx/vision_model.onnx; it has pytorch_model"):
        models.pull("tiny/clip")
    assert server.asked() == []


def test_safetensors_are_fetched_for_the_torch_extra(server: HubServer) -> None:
    server.models["tiny/clip"] = {**FILES, "model.safetensors": b"weights"}
    assert models.pull("tiny/clip", precision="safetensors").text.read_bytes() == b"weights"
    assert server.asked() == [*WANTED, "model.safetensors"]


def test_the_token_stays_with_the_hub_when_a_file_lies_elsewhere(server: HubServer) -> None:
    server.elsewhere = True
    assert models.pull("tiny/clip").text.read_bytes() == FILES[TEXT]
    assert {r.authorization for r in server.requests if r.port == server.port} == {"Bearer hf_secret"}
    assert {r.authorization for r in server.requests if r.port == server.other_port} == {None}


def test_a_hub_that_cannot_be_reached_is_named(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ModelError, match=r"http://127.0.0.1:\d+ cannot be reached"):
            models.pull("tiny/clip")


def test_something_else_than_a_hub_is_recognised(server: HubServer) -> None:
    server.status["api"] = (200, "")  # a JSON object, but no model
    with pytest.raises(ModelError, match=r"does not answer as the hub does|gives .* as the commit of tiny/clip"):
        models.pull("tiny/clip")


def test_offline_takes_what_is_there_and_asks_nobody(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.pull("tiny/clip")
    server.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert models.pull("tiny/clip") == model
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set, so it cannot be pulled; unset it, or fetch config"):
        models.pull("other/clip")
    assert server.requests == []


def test_two_pulls_of_one_model_do_not_mix(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(LAST_NET_SECONDS))
    server.silent[TEXT] = LAST_NET_SECONDS
    outcome: list[object] = []
    first = threading.Thread(target=lambda: outcome.append(models.pull("tiny/clip")))
    first.start()
    until(lambda: TEXT in server.asked(), "the first pull has begun")
    with pytest.raises(ModelError, match="another process is pulling tiny/clip"):
        models.pull("tiny/clip")
    server.silent = {}
    server.released.set()
    first.join()
    assert outcome == [models.find("tiny/clip")]


def pull_in_a_process(before: str = "") -> subprocess.Popen[str]:
    # a shell that runs the tests in the background has SIGINT ignored, which children inherit
    ready = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = "import sys\nfrom clipql.cli.entry import main\nsys.exit(main(['model', 'pull', 'tiny/clip']))"
    script = f"{ready}\n{before}\n{run}"
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def test_ctrl_c_keeps_what_has_come(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", str(LAST_NET_SECONDS))
    server.silent[TEXT] = LAST_NET_SECONDS
    process = pull_in_a_process()
    partial = blob(tmp_path, TEXT).with_name(blob(tmp_path, TEXT).name + ".incomplete")
    while not partial.exists() or partial.stat().st_size < len(FILES[TEXT]) // 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LAST_NET_SECONDS)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert partial.read_bytes() == FILES[TEXT][: len(FILES[TEXT]) // 2]


def test_a_full_disk_is_said_with_what_to_do(server: HubServer, tmp_path: Path) -> None:
    process = pull_in_a_process("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))")
    _, errors = process.communicate(timeout=LAST_NET_SECONDS)
    assert process.returncode == 1
    assert errors.endswith("set HF_HOME to a folder on another disk, and pull again\n"), errors
    assert "clipql: the disk is full while pulling tiny/clip" in errors
    assert not blob(tmp_path, TEXT).exists()
