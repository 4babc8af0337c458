"""YAML that people write: what is wrong is said by file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest

from lab.base.errors import UsageError, did_you_mean
from lab.base.files import Strict, at, read_yaml, validate


class Wheel(Strict):
    size_mm: int
    tyre: str = "plain"


class Lamp(Strict):
    colour: str = "white"


class Bike(Strict):
    name: str
    wheels: list[Wheel] = []
    lamps: dict[str, Lamp] = {}
    bell: Lamp | None = None
    saddle: str = pydantic.Field(default="", alias="seat")


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "bike.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def said(path: Path, *key: str | int) -> list[str]:
    """The lines of the complaint about the file, without its path."""
    tree = read_yaml(path)
    with pytest.raises(UsageError) as caught:
        validate(Bike, path, tree, key)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines)
    return [line.removeprefix(f"{path}:") for line in lines]


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "name: red\nwheels:\n- size_mm: 700\n- {size_mm: 650, tyre: studded}\nseat: hard\n")
    bike = validate(Bike, path, read_yaml(path))
    assert [wheel.size_mm for wheel in bike.wheels] == [700, 650]
    assert bike.saddle == "hard"


def test_only_a_part_of_the_file_may_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "bikes:\n  first: {name: red}\n  second:\n    name: 7\n")
    assert validate(Bike, path, read_yaml(path), ("bikes", "first")).name == "red"
    assert said(path, "bikes", "second") == ["4: bikes.second.name: must be text, not a number: quote it"]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "wheels:\n- {size_mm: big}\n- {size_mm: 700, tire: flat}\n")
    lines = said(path)
    assert len(lines) == 3
    assert "1: name: is missing" in lines
    assert "2: wheels.0.size_mm: must be a whole number, not 'big'" in lines
    assert "3: wheels.1.tire: unknown key (did you mean tyre?); known here: size_mm, tyre" in lines


class Bell(Strict):
    volume: Annotated[int, pydantic.Field(lt=11)]
    tone: Literal["high", "low"] = "low"
    keys: dict[Annotated[str, pydantic.StringConstraints(pattern="^[a-z]+$")], bool] = {}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("volume: 12", "1: volume: must be less than 11, not 12"),
        ("volume: loud", "1: volume: must be a whole number, not 'loud'"),
        ("volume:", "1: volume: must be a whole number, not nothing"),
        ("volume: 1\ntone: hihg", "2: tone: must be 'high' or 'low', not 'hihg' (did you mean high?)"),
        ("volume: 1\nkeys: {a B: true}", "2: keys.a B: must match pattern '^[a-z]+$'"),
        ("volume: 1\nkeys: {a: perhaps}", "2: keys.a: must be true or false, not 'perhaps'"),
    ],
)
def test_what_must_be_there_is_said_in_words(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        validate(Bell, path, read_yaml(path))
    assert str(caught.value) == f"{path}:{line}"


def test_of_a_file_that_is_something_else_a_part_is_said(tmp_path: Path) -> None:
    path = write(tmp_path, "name: red\n" + "".join(f"k{number}: 1\n" for number in range(3000)))
    lines = said(path)
    assert len(lines) == 51
    assert lines[-1] == " and 2950 more"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name: red\nweels: []\n", "2: weels: unknown key (did you mean wheels?); known here: name, wheels,"),
        (
            "name: red\nlamps:\n  rear:\n    color: red\n",
            "4: lamps.rear.color: unknown key (did you mean colour?)",
        ),
        (
            "name: red\nbell:\n  color: red\n",
            "3: bell.color: unknown key (did you mean colour?); known here: colour",
        ),
        ("name: red\nqqq: 1\n", "2: qqq: unknown key; known here: name, wheels, lamps, bell, seat"),
    ],
    ids=["top", "in a mapping of models", "in an optional model", "like nothing known"],
)
def test_an_unknown_key_is_told_the_keys_known_in_its_place(tmp_path: Path, text: str, wanted: str) -> None:
    (line,) = said(write(tmp_path, text))
    assert line.startswith(wanted)


def test_text_is_no_number_and_a_number_no_text(tmp_path: Path) -> None:
    (line,) = said(write(tmp_path, 'name: red\nwheels:\n- size_mm: "700"\n'))
    assert line.startswith("3: wheels.0.size_mm: ")
    (line,) = said(write(tmp_path, "name: 700\n"))
    assert line.startswith("1: name: ")


@pytest.mark.parametrize("text", ["name: red\nbell: loud\n", "name: red\nlamps: [front]\n"])
def test_what_must_be_a_mapping_is_said_so(tmp_path: Path, text: str) -> None:
    (line,) = said(write(tmp_path, text))
    assert line.startswith("2: ") and line.endswith("must be a mapping (key: value)")


def test_a_file_that_is_no_mapping(tmp_path: Path) -> None:
    assert said(write(tmp_path, "- red\n")) == ["1: must be a mapping (key: value)"]


# -- aliases -------------------------------------------------------------------------------------------------


def test_an_alias_stands_for_its_anchor(tmp_path: Path) -> None:
    path = write(tmp_path, "name: red\nwheels:\n- &wheel {size_mm: 700}\n- *wheel\n")
    assert [wheel.size_mm for wheel in validate(Bike, path, read_yaml(path)).wheels] == [700, 700]


def test_a_mistake_behind_an_alias_is_found_where_it_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, "name: red\nwheels:\n- &wheel\n  size_mm: 700\n  tire: flat\n- *wheel\n")
    first, second = said(path)
    assert first.startswith("5: wheels.0.tire: unknown key (did you mean tyre?)")
    assert second.startswith("5: wheels.1.tire: unknown key (did you mean tyre?)")


# -- places --------------------------------------------------------------------------------------------------


def test_at_names_the_deepest_line_it_knows(tmp_path: Path) -> None:
    path = write(tmp_path, "one:\n  two:\n  - a\n  -\n    three: b\n")
    tree = read_yaml(path)
    assert at(path, tree, ("one", "two", 1, "three")) == f"{path}:5: one.two.1.three"
    assert at(path, tree, ("one", "two", 0)) == f"{path}:3: one.two.0"
    assert at(path, tree, ("one", "none")) == f"{path}:1: one.none"
    assert at(path, tree, ("one", "two", 0, "deeper", "yet")) == f"{path}:3: one.two.0.deeper.yet"
    assert at(path, {"plain": "dict"}, ("plain",)) == f"{path}:1: plain"


# -- what is no YAML -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name: red\nname: blue\n", ':2: found duplicate key "name"'),
        ("name: [red\nother: 1\n", ":2: "),
        ("name: red\n\tbell: 1\n", ":2: "),
        ("name: *nobody\n", ":1: found undefined alias"),
        ("name: \x01\n", ": not YAML: "),
        ("name: red\n~: 1\n", ":2: a key must be a word; YAML reads this one as nothing: quote it"),
        ("name:\n  null: 1\n", ":2: a key must be a word; YAML reads this one as nothing: quote it"),
        ("- true: 1\n", ":1: a key must be a word; YAML reads this one as true or false: quote it"),
        ("2026-01-02: 1\n", ":1: a key must be a word; YAML reads this one as a date or another value: quote it"),
    ],
    ids=[
        *("duplicate key", "bracket", "tab", "alias to nothing", "control character"),
        *("key of nothing", "key of null", "key of truth", "key that is a date"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(tmp_path: Path, text: str, wanted: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(f"{path}{wanted}")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bike.yaml"
    path.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(UsageError, match=r"bike\.yaml: not YAML: .*utf-8"):
        read_yaml(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.yaml: No such file or directory"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_yaml(tmp_path)


def test_did_you_mean_is_silent_when_nothing_is_near() -> None:
    assert did_you_mean("iomu", ["iommu", "numa"]) == " (did you mean iommu?)"
    assert did_you_mean("zzz", ["iommu", "numa"]) == ""
