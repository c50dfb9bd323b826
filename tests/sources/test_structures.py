"""Structures, packaged and from files, against gemmi and against the contents of the files."""

from __future__ import annotations

import gzip
import itertools
import re

import gemmi
import numpy as np
import pytest

from cryobench.errors import DataError
from cryobench.sources.structures import catalogue, names_of, read_structure

PDB = """\
ATOM      1  N   ALA A   1       0.000   0.000   0.000  1.00  0.00           N
ATOM      2  CA AALA A   1       1.500   0.000   0.000  0.60  0.00           C
ATOM      3  CA BALA A   1       1.500   1.000   0.000  0.40  0.00           C
ATOM      4  H   ALA A   1      -1.000   0.000   0.000  1.00  0.00           H
ATOM      5  C   GLY B   1      10.000   4.000   2.000  1.00  0.00           C
HETATM    6  O   HOH C   1      50.000   0.000   0.000  1.00  0.00           O
HETATM    7  N   DUM D   1      90.000   0.000   0.000  1.00  0.00           N
END
"""

SPLITS = ("train", "val", "test", "folds", "folds-val")


@pytest.mark.parametrize("name", catalogue())
def test_packaged_structures_are_described_and_have_the_size_of_their_molecules(name):
    entry, atoms = catalogue()[name], read_structure(name)
    assert re.fullmatch(r"[0-9][A-Z0-9]{3}", entry["pdb"])
    assert entry["split"] in SPLITS
    assert len(atoms.positions) == len(atoms.numbers) > 3000
    assert set(atoms.numbers.tolist()) <= {6, 7, 8, 9, 11, 12, 15, 16, 17, 20, 25, 26, 29, 30, 34, 42, 48, 53}
    np.testing.assert_allclose(atoms.positions.min(axis=0), -atoms.positions.max(axis=0), atol=0.02)
    # neighbours in a file are bonded: about 1.2 to 2.8 Å apart, whatever has been done to the numbers
    steps = np.linalg.norm(np.diff(atoms.positions, axis=0), axis=1)
    assert 1.2 < np.median(steps) < 2.0


def test_the_subunits_are_disjoint_and_most_of_the_ribosome():
    whole, large, small = (read_structure(name).numbers for name in ("6zu5", "6zu5-large", "6zu5-small"))
    assert len(large) > 1.3 * len(small)
    assert 0.97 * len(whole) < len(large) + len(small) < len(whole)  # Lso2 and AMP belong to neither
    chains = [set(catalogue()[f"6zu5-{unit}"]["chains"]) for unit in ("large", "small")]
    assert not chains[0] & chains[1]


@pytest.mark.parametrize(("name", "copies", "radius"), [("4v1w", 24, 64.0), ("1lnl", 2, None), ("3enl", 2, None)])
def test_assemblies_are_stored_as_motions_of_one_copy(name, copies, radius):
    """Apoferritin is a shell of 24 copies, 12 to 13 nm across; copies are congruent and do not overlap."""
    atoms = read_structure(name)
    parts = np.split(atoms.positions, copies)
    centred = [part - part.mean(axis=0) for part in parts]
    for part, numbers in zip(centred[1:], np.split(atoms.numbers, copies)[1:], strict=True):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), np.linalg.norm(centred[0], axis=1), atol=1e-3)
        assert (numbers == atoms.numbers[: len(numbers)]).all()
    middles = [part.mean(axis=0) for part in parts]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(middles, 2)) > 20
    if radius:
        assert abs(atoms.radius - radius) < 5
        assert 35 < np.linalg.norm(atoms.positions, axis=1).min() < 45  # it is hollow


def test_splits_share_no_structure():
    of_split = [{name.split("-")[0] for name in names_of(split)} for split in SPLITS]
    assert [len(names) for names in of_split] == [3, 1, 1, 25, 2]
    assert len(set.union(*of_split)) == sum(map(len, of_split))
    assert names_of("6zu5+3o21") == ["6zu5", "3o21"]


@pytest.mark.parametrize("packed", [False, True])
def test_hydrogens_water_markers_and_second_conformations_are_left_out(tmp_path, packed):
    path = tmp_path / ("a.pdb.gz" if packed else "a.pdb")
    path.write_bytes(gzip.compress(PDB.encode()) if packed else PDB.encode())
    atoms = read_structure(str(path))
    assert atoms.numbers.tolist() == [7, 6, 6]
    np.testing.assert_allclose(atoms.positions, [[-5, -2, -1], [-3.5, -2, -1], [5, 2, 1]])
    assert read_structure(str(path), chains="B").numbers.tolist() == [6]


def test_mmcif_and_its_assembly_are_those_of_gemmi(tmp_path):
    structure = gemmi.read_pdb_string(PDB)
    structure.setup_entities()
    assembly = gemmi.Assembly("1")
    turn = gemmi.Transform(gemmi.Mat33([[-1, 0, 0], [0, -1, 0], [0, 0, 1]]), gemmi.Vec3(30, 0, 0))
    generator = gemmi.Assembly.Gen()
    generator.chains = ["A", "B"]
    for transform in (gemmi.Transform(), turn):
        operator = gemmi.Assembly.Operator()
        operator.transform = transform
        generator.operators.append(operator)
    assembly.generators.append(generator)
    structure.assemblies.append(assembly)
    path = tmp_path / "a.cif"
    structure.make_mmcif_document().write_file(str(path))
    single, double = read_structure(str(path)), read_structure(str(path), assembly="1")
    assert len(double.numbers) == 2 * len(single.numbers) == 6
    np.testing.assert_allclose(double.positions[3:, :2], -double.positions[:3, :2], atol=1e-6)
    with pytest.raises(DataError, match="has no assembly '7'; it has 1"):
        read_structure(str(path), assembly="7")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.cif", b"", "is empty"),
        ("no_atoms.cif", b"data_x\n_entry.id x\n", "has no atoms; expected the coordinates"),
        ("broken.cif", b"data_x\nloop_\n_a.b\n'never closed\n", "is not a readable mmCIF or PDB file"),
        ("water.pdb", PDB.splitlines()[5].encode() + b"\n", "no atoms but hydrogens and water"),
        ("cut.cif.gz", gzip.compress(b"data_x\n" * 5000, mtime=0)[:40], "is not a readable mmCIF or PDB file"),
        ("notes.txt", b"hello", "has no suffix of a coordinate file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value and " " not in value else "",
)
def test_files_that_are_not_structures_are_refused_in_one_line(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_structure(str(path))
    assert "\n" not in str(caught.value)


def test_invalid_parameters_are_refused(tmp_path):
    with pytest.raises(
        DataError, match="6zu6 is neither a packaged structure nor a file; the packaged structures are 6zu5, "
    ):
        read_structure("6zu6")
    with pytest.raises(DataError, match="does not exist"):
        read_structure(str(tmp_path / "a.cif"))
    with pytest.raises(DataError, match="3o21 has no chain 'Q'; it has A, B, C, D"):
        read_structure("3o21", chains="A,Q")
    with pytest.raises(DataError, match="packaged as deposited"):
        read_structure("6zu5", assembly="1")
