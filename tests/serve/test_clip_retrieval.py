"""clip-retrieval's service: the requests of its ClipClient and of its front, against numpy over the same vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipql.serve.clip_retrieval import SAME, repeated
from tests.serve.conftest import Reply, Running, fill, start, stop

FRONT = "https://front.example"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose owner lets a front ask."""
    folder: Path = tmp_path_factory.mktemp("shared")
    fill(folder)
    running = start(folder, "--allow-origin", FRONT, "--pictures", str(folder / "pictures"))
    yield running
    stop(running)


def asked(**given: Any) -> dict[str, Any]:
    """What ClipClient sends, with all keys."""
    plain = {
        "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": False,
        "use_safety_model": False, "use_violence_detector": False, "indice_name": "laion", "use_mclip": False,
        "aesthetic_score": 9, "aesthetic_weight": 0.5, "modality": "image", "num_images": 10, "num_result_ids": 10,
    }  # fmt: skip
    return plain | given


def knn(server: Running, **given: Any) -> Reply:
    return server.post("/knn-service", asked(**given))


def vectors(server: Running, column: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    rows = server.sql(f"SELECT {column} FROM laion FORMAT JSONCompactEachRow").text.splitlines()
    return np.array([json.loads(line)[0] for line in rows], np.float32)


@pytest.mark.parametrize(("modality", "column"), [("image", "image_embedding"), ("text", "text_embedding")])
def test_a_vector_finds_the_rows_of_largest_similarity(shared: Running, modality: str, column: str) -> None:
    every = vectors(shared, column)
    query = every[7] + 0.1
    unit = every / np.linalg.norm(every, axis=1, keepdims=True)
    similarity = unit @ (query / np.linalg.norm(query))
    best = np.argsort(-similarity)[:10]
    found = knn(shared, embedding_input=query.tolist(), modality=modality).json
    assert [r["id"] for r in found] == best.tolist()
    assert np.allclose([r["similarity"] for r in found], similarity[best], atol=1e-5)
    captions = shared.sql("SELECT caption FROM laion FORMAT JSONColumns").json["caption"]
    assert [r["caption"] for r in found] == [captions[i] for i in best]
    assert {"url", "caption", "id", "similarity"} <= set(found[0])


def test_more_ids_than_images_come_without_their_columns(shared: Running) -> None:
    found = knn(shared, embedding_input=[1.0] * 16, num_images=3, num_result_ids=8).json
    assert len(found) == 8
    assert [set(r) == {"id", "similarity"} for r in found] == [False] * 3 + [True] * 5
    ids = [r["id"] for r in found]
    told = shared.post("/metadata", {"ids": ids, "indice_name": "laion"}).json
    assert [t["id"] for t in told] == ids
    assert [t["metadata"]["caption"] for t in told][:3] == [r["caption"] for r in found[:3]]
    assert shared.post("/metadata", {"ids": [], "indice_name": "laion"}).json == []


def test_unsafe_rows_and_pictures_of_files(shared: Running) -> None:
    dimension = int(shared.sql("SELECT length(image_embedding) FROM pictures LIMIT 1").text)
    given = {"indice_name": "pictures", "embedding_input": [1.0] * dimension}
    every = knn(shared, **given).json
    safe = knn(shared, **given, use_safety_model=True).json
    assert len(every) == 4
    assert [r["id"] for r in safe] == [r["id"] for r in every if not r["NSFW"]]
    assert {Path(r["image_path"]).name for r in every if "image" in r} == {"red.png"}


def test_what_has_no_effect_is_named_and_what_cannot_be_done_is_refused(shared: Running) -> None:
    reply = knn(shared, embedding_input=[1.0] * 16, use_violence_detector=True)
    assert reply.status == 200
    assert "aesthetic_score" in reply.headers["x-clipql-notes"]
    assert "use_violence_detector" in reply.headers["x-clipql-notes"]
    for given, said in (
        ({"use_mclip": True, "embedding_input": [1.0] * 16}, "no multilingual model"),
        ({"image_url": "http://127.0.0.1:1/x.png"}, "fetches no pictures"),
        ({}, "one of text, image, image_url and embedding_input"),
        ({"embedding_input": [1.0] * 16, "modality": "sound"}, "modality"),
        ({"embedding_input": [1.0] * 16, "indice_name": "nobody"}, "laion, pictures"),
        ({"embedding_input": [1.0] * 16, "num_images": 0}, "num_images"),
        ({"embedding_input": "x"}, "vector"),
    ):
        reply = knn(shared, **given)
        assert (reply.status, said in reply.json["error"]) == (400, True), reply.text


def test_the_tables_are_listed_as_indices(shared: Running) -> None:
    assert shared.ask("/indices-list").json == ["laion", "pictures"]


def test_a_token_is_asked_for(reader: Running) -> None:
    assert reader.ask("/indices-list").status == 401
    assert knn(reader, embedding_input=[1.0] * 16).status == 401
    basic = {"Authorization": "Basic " + base64.b64encode(b"any:open sesame").decode()}
    assert reader.ask("/indices-list", headers=basic).status == 200


def test_a_front_of_a_named_site_may_ask_and_no_other(shared: Running) -> None:
    mine = {"Origin": FRONT, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    reply = shared.ask("/indices-list", headers=mine)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, FRONT)
    before = shared.ask("/knn-service", method="OPTIONS", headers={**mine, "Access-Control-Request-Method": "POST"})
    assert (before.status, before.headers["access-control-allow-headers"]) == (204, "content-type, authorization")
    other = shared.ask("/indices-list", headers={**mine, "Origin": "https://other.example"})
    assert other.status == 403
    assert shared.ask("/", "SELECT 1", headers=mine).status == 403  # SQL is no part of what was shared
    assert shared.ask("/api/tables", headers=mine).status == 403


def test_rows_that_are_alike_over_others_are_one() -> None:
    angles = np.array([0.0, 0.3, 0.6, 2.0, 2.1, 4.0])
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert np.cos(0.3) > SAME > np.cos(0.6)
    assert repeated(circle) == {1, 2, 4}
    assert repeated(circle[::-1]) == {2, 4, 5}
    assert repeated(circle[:0]) == set()


def test_a_vector_of_zeros_is_like_nothing_by_a_number_that_can_be_told(shared: Running) -> None:
    found = knn(shared, embedding_input=[0.0] * 16, num_result_ids=3).json
    assert [row["similarity"] for row in found] == [None] * 3
