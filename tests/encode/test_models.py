"""Where models are looked for, what is said of those that are not there, and `clipql model`."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer, clip_files
from patience import LAST_NET_SECONDS

from clipql.cli.entry import main
from clipql.encode import models
from clipql.encode.cache import cache_folder
from clipql.errors import ModelError

FILES = clip_files()
SETTINGS = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CLIPQL_MODEL")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face home."""
    for name in (*SETTINGS, "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return tmp_path / "hf"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with HubServer() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def write_model(folder: Path, *without: str) -> Path:
    for name, content in FILES.items():
        if name not in without:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    return folder


def write_cached(cache: Path, repository: str, *without: str, commit: str = COMMIT) -> Path:
    """As Hugging Face's library leaves a model in its cache."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    return write_model(folder / "snapshots" / commit, *without)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "my-clip")
    assert models.find(folder).path == folder
    assert models.find(str(folder)).model == "my-clip"
    monkeypatch.chdir(tmp_path)
    assert models.find("my-clip").path == Path("my-clip")
    assert models.find("./my-clip").path == Path("my-clip")


def test_a_name_is_found_in_the_cache_wherever_it_lies(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = write_cached(home / "hub", "tiny/clip")
    assert models.find("tiny/clip").path == there
    elsewhere = write_cached(tmp_path / "other", "tiny/clip")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert models.find("tiny/clip").path == elsewhere
    monkeypatch.setenv("HF_HUB_CACHE", "$HF_HOME/hub")
    assert models.find("tiny/clip").path == there


def test_the_commit_that_was_fetched_last_counts(home: Path) -> None:
    write_cached(home / "hub", "tiny/clip", commit="a" * 40)
    newest = write_cached(home / "hub", "tiny/clip", commit="b" * 40)
    assert models.find("tiny/clip").path == newest
    (home / "hub" / "models--tiny--clip" / "refs" / "main").unlink()
    os.utime(newest.with_name("a" * 40), (2e9, 2e9))
    assert models.find("tiny/clip").path == newest.with_name("a" * 40)


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "ViT-B/32", "open_clip:ViT-B-32/openai"])
def test_the_names_of_one_model_lead_to_its_export(home: Path, name: str) -> None:
    there = write_cached(home / "hub", "Xenova/clip-vit-base-patch32")
    found = models.find(name)
    assert (found.path, found.model) == (there, "openai/clip-vit-base-patch32")


def test_the_default_is_the_environments_model_and_else_openais(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cached(home / "hub", "Xenova/clip-vit-base-patch32")
    assert models.find().model == "openai/clip-vit-base-patch32"
    monkeypatch.setenv("CLIPQL_MODEL", str(write_model(tmp_path / "mine")))
    assert models.find().model == "mine"


def test_what_other_programs_left_in_the_cache_does_not_stand_in_the_way(home: Path) -> None:
    networks = [name for name in FILES if name.endswith(".onnx")]
    write_cached(home / "hub", "openai/clip-vit-base-patch32", *networks)
    with pytest.raises(ModelError, match="is not on this machine"):
        models.find()
    there = write_cached(home / "hub", "Xenova/clip-vit-base-patch32")
    assert models.find().path == there


def test_a_model_that_is_not_there_is_said_with_what_to_do(home: Path) -> None:
    with pytest.raises(ModelError) as caught:
        models.find()
    assert str(caught.value) == (
        f"the model openai/clip-vit-base-patch32 is not on this machine (looked in {home / 'hub'}). "
        "Run `clipql model pull openai/clip-vit-base-patch32`. Without a network, fetch config.json, "
        "preprocessor_config.json, tokenizer.json, onnx/text_model.onnx and onnx/vision_model.onnx of "
        "https://huggingface.co/Xenova/clip-vit-base-patch32 elsewhere, put them into a folder here as they are, and "
        "give that folder as the model (--model FOLDER, or CLIPQL_MODEL=FOLDER)"
    )


def test_a_model_that_lacks_a_file_is_said_with_what_to_do(home: Path) -> None:
    there = write_cached(home / "hub", "tiny/clip", "onnx/vision_model.onnx")
    message = (
        f"tiny/clip on this machine is not usable: {re.escape(str(there))}.*vision_model.onnx.*model pull tiny/clip"
    )
    with pytest.raises(ModelError, match=message):
        models.find("tiny/clip")


def test_a_precision_picks_among_the_files_of_a_model(home: Path) -> None:
    there = write_cached(home / "hub", "tiny/clip")
    assert models.find("tiny/clip", precision="int8").text == there / "onnx" / "text_model_quantized.onnx"
    with pytest.raises(
        ModelError, match=r"expected text_model_fp16.onnx .*Run `clipql model pull tiny/clip --precision fp16`"
    ):
        models.find("tiny/clip", precision="fp16")


def test_the_bundled_model_lies_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "resources", {"clipql.data": tmp_path}.__getitem__)
    with pytest.raises(ModelError, match="the model clipql/emoji is not in this installation"):
        models.find("clipql/emoji")
    folder = write_model(tmp_path / "emoji" / "model")
    found = models.find("clipql/emoji")
    assert (found.path, found.model) == (folder, "clipql/emoji")
    assert models.pull("clipql/emoji") == found
    assert [(each.name, each.place) for each in models.installed()] == [("clipql/emoji", "bundled")]


def test_a_cache_that_cannot_be_written_is_named(
    server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"cannot pull tiny/clip into .*/file/hub: .*Not a directory; HF_HOME names"):
        models.pull("tiny/clip")


def test_a_folder_cannot_be_pulled(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a folder of this machine; only a name on Hugging Face can be pulled"):
        models.pull(str(tmp_path))


def test_finding_a_model_needs_neither_the_library_nor_the_network(home: Path) -> None:
    write_cached(home / "hub", "tiny/clip")
    script = (
        "import sys; from clipql.encode.models import find, installed; find('tiny/clip'); installed()\n"
        "heavy = {'huggingface_hub', 'httpx2', 'onnxruntime', 'tokenizers', 'PIL', 'numpy', 'chdb'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_list_shows_what_is_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_cached(home / "hub", "tiny/clip")
    write_cached(home / "hub", "some/language-model", "preprocessor_config.json")
    assert main(["model", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "PLACE", "DIMENSION", "PRECISION", "SIZE", "TEXT", "RUNS", "PICTURES", "RUN"]
    shown = [" ".join(line.split()) for line in lines if "cache" in line]
    assert shown == ["tiny/clip cache 8 fp32 0.7 MB as it is as it is"]


def test_list_of_an_empty_cache_says_how_to_fill_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model"]) == 0
    assert capsys.readouterr().err == f"no CLIP model is in {cache_folder()}; `clipql model pull` fetches one\n"


def test_info_tells_shapes_files_digests_and_licence(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = write_cached(home / "hub", "tiny/clip")
    assert main(["model", "info", "tiny/clip"]) == 0
    shown = ["config.json", "preprocessor_config.json", "README.md", "tokenizer.json"]
    shown += ["onnx/text_model.onnx", "onnx/vision_model.onnx"]
    sizes = {"onnx/text_model.onnx": "0.3 MB", "onnx/vision_model.onnx": "0.4 MB"}
    files = [
        f"  {hashlib.sha256(FILES[f]).hexdigest()}  {sizes.get(f, f'{len(FILES[f]) / 1e3:.1f} KB'):>10}  {f}"
        for f in shown
    ]
    assert capsys.readouterr().out.splitlines() == [
        "model      tiny/clip",
        f"folder     {there}",
        "dimension  8 numbers a vector",
        "text       text_model.onnx, up to 16 tokens of 300",
        "pictures   vision_model.onnx, 32 x 32 pixels",
        "precision  fp32",
        "form       text: as it is: not optimized: run `clipql model optimize`",
        "form       vision: as it is: not optimized: run `clipql model optimize`",
        "licence    mit",
        "files",
        *files,
    ]


def test_pull_writes_plain_lines_where_there_is_no_terminal(
    server: HubServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "pull", "tiny/clip"]) == 0
    output = capsys.readouterr()
    assert output.out == f"tiny/clip: {home / 'hub' / 'models--tiny--clip' / 'snapshots' / COMMIT}\n"
    assert output.err.splitlines()[4:6] == [
        "onnx/text_model.onnx (5 of 6): 0.3 MB, fetched",
        "onnx/vision_model.onnx (6 of 6): 0.4 MB, fetched",
    ]
    assert re.fullmatch(r"0\.7 MB in 6 files, 0\.7 MB fetched in \d+\.\d s \(.* MB/s\)", output.err.splitlines()[-1])
    assert main(["model", "pull", "tiny/clip"]) == 0
    output = capsys.readouterr()
    assert output.err.splitlines()[5:] == [
        "onnx/vision_model.onnx (6 of 6): 0.4 MB, already there",
        "0.7 MB in 6 files, all there and as the hub has them",
    ]


def test_pull_draws_a_bar_on_a_terminal_and_takes_it_away(server: HubServer) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "clipql", "model", "pull", "tiny/clip"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as process:
        assert process.wait(timeout=LAST_NET_SECONDS) == 0
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert re.search(r"onnx/vision_model.onnx  0.7 of 0.7 MB  .* MB/s", shown)
    assert re.search(r"\r\x1b\[K0\.7 MB in 6 files, 0\.7 MB fetched", shown)


def test_what_went_wrong_is_one_line(capsys: pytest.CaptureFixture[str], server: HubServer) -> None:
    assert main(["model", "pull", "nobody/nothing"]) == 1
    assert capsys.readouterr().err.startswith("clipql: there is no model nobody/nothing at http://127.0.0.1:")
    assert main(["model", "info", "nobody/nothing"]) == 1
    assert capsys.readouterr().err.startswith("clipql: the model nobody/nothing is not on this machine")


def test_install_names_a_model_of_the_cache_as_the_servers_user_finds_it(home: Path, tmp_path: Path) -> None:
    write_cached(home / "hub", "Xenova/clip-vit-base-patch32")
    assert main(["udf", "install", str(tmp_path / "udf")]) == 0
    lines = (tmp_path / "udf" / "user_scripts" / "encode_image").read_text().splitlines()
    assert lines[4:] == [
        f"export HF_HUB_CACHE={home / 'hub'}",
        f"exec {sys.executable} -m clipql udf run image --model Xenova/clip-vit-base-patch32",
    ]
