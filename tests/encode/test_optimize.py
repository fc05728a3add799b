"""`clipql model optimize`: a form is used only where it is measured, whole, and of the network that is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipql.cli.entry import main
from clipql.encode import forms, open_encoder, optimize, samples
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import read_folder
from clipql.encode.int8 import Samples
from clipql.encode.models import find
from clipql.encode.onnx import OnnxTowers
from clipql.errors import ModelError

CAPTIONS = pq.read_table(Path(__file__).parents[1] / "data" / "captions" / "web_10000.parquet").column("TEXT")
TEXTS = ["", *CAPTIONS.to_pylist()[:200]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with its forms, which are used however fast this machine has them."""
    folder = Path(shutil.copytree(find("clipql/emoji").path, tmp_path_factory.mktemp("models") / "emoji"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimize, "LEAST_TIMES", 0.0)
        patch.setattr(optimize, "_ROUNDS", 1)
        optimize.optimize(folder, threads=1)
    return folder


@pytest.fixture(autouse=True)
def _whatever_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "LEAST_TIMES", 0.0)
    monkeypatch.setattr(optimize, "_ROUNDS", 1)
    monkeypatch.setattr(samples, "CAPTIONS", samples.CAPTIONS[:12])
    monkeypatch.setattr(samples, "_KINDS", 6)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "emoji"))


def running(folder: Path) -> dict[str, str]:
    encoder = open_encoder(folder, threads=1)
    assert isinstance(encoder, ClipEncoder)
    encoder.load()
    return encoder.running


def test_the_shipped_models_forms_give_unit_vectors_near_those_of_float32(made: Path) -> None:
    form, plain = open_encoder(made, threads=1), open_encoder(made, threads=1, precision="fp32")
    assert isinstance(form, ClipEncoder)
    assert isinstance(plain, ClipEncoder)
    for found, expected in (
        (form.encode_texts(TEXTS), plain.encode_texts(TEXTS)),
        (form.encode_pictures(samples.pictures()).vectors, plain.encode_pictures(samples.pictures()).vectors),
    ):
        assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
        assert (found * expected).sum(1).min() >= 0.995
        assert ((found @ expected.T).argmax(1) == (expected @ expected.T).argmax(1)).mean() > 0.98
    assert form.running == {"text": "int8", "vision": "int8"}
    assert plain.running == {"text": "fp32", "vision": "fp32"}


def test_a_form_that_is_no_faster_or_not_near_enough_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimize, "LEAST_TIMES", 1e9)
    optimize.optimize(folder, threads=1)
    assert running(folder) == {"text": "fp32", "vision": "fp32"}
    monkeypatch.setattr(optimize, "LEAST_TIMES", 0.0)
    monkeypatch.setattr(optimize, "LEAST_COSINE", 1.1)
    found = optimize.optimize(folder, threads=1)
    tried = [[trial.kind for trial in note.trials] for note in found.notes.values()]
    assert tried == [["int8", "int8-rows"]] * 2  # the nearer one too, since the fast one was not near enough
    assert [note.used for note in found.notes.values()] == ["", ""]
    assert [entry.name for entry in (folder / forms.FOLDER).iterdir()] == [forms.NOTES]


def spoil_form(folder: Path) -> None:
    file = next((folder / forms.FOLDER).glob("text-*.onnx"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_form(folder: Path) -> None:
    next((folder / forms.FOLDER).glob("text-*.onnx")).unlink()


def change_network(folder: Path) -> None:
    file = folder / "onnx" / "text_model.onnx"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def lead_out(folder: Path) -> None:
    change_note(folder, lambda note: note["trials"][0].update(file="../onnx/text_model.onnx"))


def from_elsewhere(folder: Path) -> None:
    change_note(folder, lambda note: note.update(processor="another one"))


def no_notes(folder: Path) -> None:
    (folder / forms.FOLDER / forms.NOTES).write_text('{"format": 1, "towers": {"text": [1]}}')


def change_note(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / forms.FOLDER / forms.NOTES
    notes = json.loads(path.read_text())
    change(notes["towers"]["text"])
    path.write_text(json.dumps(notes))


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (spoil_form, "damaged or missing"),
        (lose_form, "damaged or missing"),
        (change_network, "another one now"),
        (lead_out, "cannot be read"),
        (from_elsewhere, "another kind of processor"),
        (no_notes, "cannot be read"),
    ],
)
def test_what_is_not_the_form_that_was_measured_is_not_used(
    folder: Path, harm: Callable[[Path], None], why: str
) -> None:
    harm(folder)
    state = forms.state(read_folder(folder), "text", whole=True)
    assert (state.file, why in state.why) == (None, True), state.why
    if harm is not change_network:  # which no longer loads
        tower = OnnxTowers(read_folder(folder), threads=1, optimized=True)
        tower.masks_text()
        assert tower.running == {"text": "fp32"}


def test_optimizing_again_mends_a_damaged_form(folder: Path) -> None:
    spoil_form(folder)
    optimize.optimize(folder, threads=1)
    assert running(folder) == {"text": "int8", "vision": "int8"}


def test_a_network_that_was_copied_keeps_its_form(folder: Path) -> None:
    file = folder / "onnx" / "text_model.onnx"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    assert running(folder)["text"] == "int8"


def test_a_run_that_is_cut_short_goes_on_where_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "emoji", ignore=shutil.ignore_patterns(forms.FOLDER)))
    done: list[str] = []
    maker = optimize.MAKERS[forms.INT8]

    def cut(network: Path, given: Samples, *, narrow: bool) -> bytes:
        if done:
            raise KeyboardInterrupt
        return counted(network, given, narrow=narrow)

    def counted(network: Path, given: Samples, *, narrow: bool) -> bytes:
        done.append(network.name)
        return maker(network, given, narrow=narrow)

    monkeypatch.setitem(optimize.MAKERS, forms.INT8, cut)
    with pytest.raises(KeyboardInterrupt):
        optimize.optimize(folder, threads=1)
    assert running(folder) == {"text": "fp32", "vision": "fp32"}
    monkeypatch.setitem(optimize.MAKERS, forms.INT8, counted)
    optimize.optimize(folder, threads=1)
    assert done == ["text_model.onnx", "vision_model.onnx"]
    assert running(folder) == {"text": "int8", "vision": "int8"}


@pytest.mark.parametrize(
    ("processor", "narrow"),
    [
        ("x86_64 avx2", True),
        ("x86_64 avx2 avx512bw avx512f", True),
        ("AMD64", True),
        ("x86_64 avx2 avx_vnni", False),
        ("x86_64 avx2 avx512_vnni avx512bw avx512f", False),
        ("aarch64 asimddp", False),
    ],
)
def test_a_form_is_made_for_the_sums_of_the_processor_that_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch, processor: str, narrow: bool
) -> None:
    asked: list[bool] = []

    def made_for(network: Path, given: Samples, *, narrow: bool) -> bytes:
        asked.append(narrow)
        return network.read_bytes()

    shutil.rmtree(folder / forms.FOLDER)
    monkeypatch.setattr(optimize, "MAKERS", {forms.INT8: made_for})
    for each in (processor, "x86_64 avx512_vnni" if narrow else "x86_64"):  # a form of the other kind is not taken over
        monkeypatch.setattr(forms, "processor", lambda each=each: each)
        optimize.optimize(folder, threads=1)
    assert asked == [narrow, narrow, not narrow, not narrow]


def test_a_network_that_cannot_be_brought_to_int8_stays_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network: Path, given: Samples, *, narrow: bool) -> bytes:
        raise ModelError("no such operator")

    shutil.rmtree(folder / forms.FOLDER)
    monkeypatch.setattr(optimize, "MAKERS", {forms.INT8: fail})
    found = optimize.optimize(folder, threads=1)
    assert [trial.problem for note in found.notes.values() for trial in note.trials] == ["no such operator"] * 2
    assert running(folder) == {"text": "fp32", "vision": "fp32"}


def test_the_command_line_tells_what_runs_and_takes_it_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "info", str(folder)]) == 0
    assert "form       text: int8, " in capsys.readouterr().out
    assert main(["model", "optimize", str(folder), "--threads", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert all("int8: " in line and line.endswith(": used") for line in said)
    assert main(["model", "optimize", str(folder), "--remove"]) == 0
    assert capsys.readouterr().out == "clipql/emoji runs as it is\n"
    assert not (folder / forms.FOLDER).exists()
    assert main(["model", "info", str(folder)]) == 0
    assert "form       text: as it is: not optimized: run `clipql model optimize`" in capsys.readouterr().out
    assert main(["model", "optimize", str(folder), "--threads", "0"]) == 1
    assert not (folder / forms.FOLDER).exists()
