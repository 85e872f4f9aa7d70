"""What a folder of results shares, and that half a fit is no result."""

from types import SimpleNamespace

import pytest

from inrfast.experiments.paper import POSES, Request, uninterrupted


def test_settings_follow_the_contents_of_files_and_not_where_they_lie(tmp_path):
    found = []
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.obj").write_text(text)
        found.append(Request(meshes=(tmp_path / folder / "x.obj",)).settings)
    assert found[0] == found[1] != found[2]
    given = Request(weights=tmp_path / "a" / "x.obj").settings
    assert {**Request().settings, "weights": found[0]["meshes"]} == given  # without a file as before there were any
    given = Request(masks=(tmp_path / "a" / "x.obj",)).settings
    assert {**Request().settings, "masks": found[0]["meshes"]} == given
    (tmp_path / "a" / POSES).write_text("1")
    given = Request(scenes=(tmp_path / "a",)).settings
    assert {**Request().settings, "scenes": {"a": found[0]["meshes"]["x.obj"]}} == given


def test_an_interrupted_fit_is_no_result():
    whole, half = SimpleNamespace(interrupted=False), SimpleNamespace(interrupted=True)
    assert uninterrupted([whole, whole]) == [whole, whole]
    with pytest.raises(KeyboardInterrupt):
        uninterrupted([whole, half])
