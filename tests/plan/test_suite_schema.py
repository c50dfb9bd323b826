"""The schema for editors agrees with the parser of suites."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cryobench.errors import SuiteError
from cryobench.plan import suite_file
from cryobench.plan.suite_file import read_suite

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((Path(suite_file.__file__).parent / "suite.schema.json").read_text())
SUITES = sorted((ROOT / "leaderboards").glob("*.yaml"))
LEAST = "solvers: dct\noperators: sumpool:4\n"


def valid(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text))


def readable(text: str, folder: Path) -> bool:
    path = folder / "suite.yaml"
    path.write_text(text)
    try:
        read_suite(path)
    except SuiteError:
        return False
    return True


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_published_suites_are_valid_and_name_the_schema(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), SCHEMA)
    first = path.read_text().splitlines()[0]
    schema = first.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == Path(suite_file.__file__).parent.resolve() / "suite.schema.json"


def test_the_schema_is_valid_and_has_the_keys_of_the_parser(tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    reader = suite_file._Reader(tmp_path)
    assert set(SCHEMA["properties"]) == {"title", "about", "pooled", "include", "exclude", "references",
                                         *reader._grid}  # fmt: skip
    assert set(SCHEMA["$defs"]["grid"]["properties"]) == set(reader._grid)


@pytest.mark.parametrize(
    "text",
    [
        LEAST,
        "solvers: [dct, {tv: {lam: [0.1, 0.2], isotropic: true}}]\noperators: [identity]\n",
        LEAST + "images: '0:2'\nsize: 64\nseeds: [0, 1]\nwithin: circle:75\nceiling: true\noptional: no data\n",
        LEAST + "needs: a-plugin\ninclude: {needs: [a, b]}\n",
        LEAST + "include: {solvers: tv}\nexclude: [{solver: 'tv*'}, {data: d, noise: n}]\n",
        LEAST + "references: {solver: dct, operator: o, source: s, values: {psnr: [1, 2], ssim: 0.5}}\n",
    ],
)
def test_both_accept_valid_suites(text, tmp_path):
    assert (valid(text), readable(text, tmp_path)) == (True, True)


@pytest.mark.parametrize(
    "text",
    [
        "- dct\n",
        LEAST + "solver: dct\n",
        LEAST + "seeds: [0.5]\n",
        LEAST + "seeds: []\n",
        LEAST + "needs: []\n",
        LEAST + "needs: {a: b}\n",
        LEAST + "ceiling: maybe\n",
        LEAST + "title: [a]\n",
        LEAST + "exclude: {}\n",
        LEAST + "exclude: {solvers: dct}\n",
        LEAST + "include: {title: another}\n",
        LEAST + "references: {solver: dct, operator: o, values: {psnr: 1}}\n",
        LEAST + "references: {solver: dct, operator: o, source: s, values: {psnr: [1, 2, 3]}}\n",
        LEAST + "references: {solver: dct, operator: o, source: s, values: {psnr: high}}\n",
        "solvers: []\noperators: identity\n",
        "solvers: [dct: {lam: []}]\noperators: identity\n",
        "solvers: [dct: 3]\noperators: identity\n",
    ],
)
def test_both_refuse_invalid_suites(text, tmp_path):
    assert (valid(text), readable(text, tmp_path)) == (False, False)
