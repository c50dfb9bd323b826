"""Atomic structures: packaged by name, or read from mmCIF and PDB files (also .gz) with gemmi."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cryobench.errors import DataError, reason_of
from cryobench.extras import of_extra
from cryobench.io.image_files import check_file
from cryobench.physics.potential import Atoms

Split = Literal["train", "val", "test"]
_FOLDER = Path(__file__).parent
_SUFFIXES = (".cif", ".mmcif", ".pdb", ".ent")


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """The packaged structures by name: description (`what`), `pdb` id, `split`, and `chains` unless all."""
    return json.loads((_FOLDER / "catalogue.json").read_text(encoding="utf-8"))["structures"]


def names_of(text: str) -> list[str]:
    """The structures that a text names: one, several joined by '+', or all packaged ones of a split."""
    in_split = [name for name, entry in catalogue().items() if entry["split"] == text]
    return in_split or text.split("+")


def read_structure(name: str, *, chains: str = "all", assembly: str | None = None) -> Atoms:
    """`read_coordinates`, relative to the centre of their bounding box."""
    atoms = read_coordinates(name, chains=chains, assembly=assembly)
    return Atoms(atoms.name, atoms.positions - middle(atoms.positions), atoms.numbers)


def read_coordinates(name: str, *, chains: str = "all", assembly: str | None = None) -> Atoms:
    """The atoms of a packaged structure, or of a file, in the coordinates of the file.

    chains: names joined by commas, or "all". assembly: the biological assembly of the file to build. Hydrogens, water
    and all but the first alternative conformation are omitted. Raises `DataError`.
    """
    if name in catalogue():
        if assembly is not None:
            raise DataError(f"{name} is packaged as deposited; for its assembly {assembly} give the mmCIF or PDB file")
        names, chain_of, numbers, positions = _packaged(name)
    else:
        names, chain_of, numbers, positions = _read_file(Path(name).expanduser(), assembly)
    kept = _of_chains(name, chains, names, chain_of)
    return Atoms(Path(name).name, positions[kept].astype(np.float64), numbers[kept])


def middle(positions: np.ndarray) -> np.ndarray:
    """The centre of the bounding box of positions [n, 3]."""
    return (positions.min(axis=0) + positions.max(axis=0)) / 2


def file_of(name: str) -> str:
    """The file of a structure; packaged structures may share one, and then its coordinates."""
    return catalogue()[name]["file"] if name in catalogue() else str(Path(name).expanduser())


def _packaged(name: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    entry = catalogue()[name]
    with np.load(_FOLDER / entry["file"], allow_pickle=False) as arrays:
        positions = np.cumsum(arrays["hundredths"], axis=0, dtype=np.int16) / 100
        names, chain_of, numbers = arrays["chain_names"].tolist(), arrays["chain_of"], arrays["numbers"]
        if "motions" in arrays:  # of an assembly of copies
            motions = arrays["motions"]
            positions = np.concatenate([positions @ motion[:, :3].T + motion[:, 3] for motion in motions])
            chain_of, numbers = np.tile(chain_of, len(motions)), np.tile(numbers, len(motions))
    kept = np.isin(chain_of, [names.index(chain) for chain in entry.get("chains", names)])
    return names, chain_of[kept], numbers[kept], positions[kept]


def _read_file(path: Path, assembly: str | None) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    with of_extra("simulate"):
        import gemmi

    inner = Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if not path.exists() and inner not in _SUFFIXES:
        known = ", ".join(catalogue())
        raise DataError(f"{path} is neither a packaged structure nor a file; the packaged structures are {known}")
    check_file(path, "mmCIF or PDB file")
    if inner not in _SUFFIXES:
        raise DataError(f"{path} has no suffix of a coordinate file; expected {', '.join(_SUFFIXES)}, also with .gz")
    try:
        structure = gemmi.read_structure(str(path))
    except Exception as error:  # gemmi raises many kinds of errors
        raise DataError(f"{path} is not a readable mmCIF or PDB file: {reason_of(error)}; download it again") from error
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise DataError(f"{path} has no atoms; expected the coordinates of a structure, not restraints or data")
    structure.setup_entities()
    model = structure[0]
    if assembly is not None:
        known = [found.name for found in structure.assemblies]
        if assembly not in known:
            raise DataError(f"{path} has no assembly {assembly!r}; it has {', '.join(known) or 'none'}")
        chosen = structure.assemblies[known.index(assembly)]
        model = gemmi.make_assembly(chosen, model, gemmi.HowToNameCopiedChain.Short)
    return _scatterers(model, path)


def _scatterers(model: Any, path: Path) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    model.remove_alternative_conformations()
    model.remove_hydrogens()
    model.remove_waters()
    names, chain_of, numbers, positions = [], [], [], []
    for chain in model:
        names.append(chain.name)
        for residue in chain:
            for atom in residue:
                if residue.name != "DUM" and atom.element.atomic_number > 0:  # DUM: points that mark a membrane
                    chain_of.append(len(names) - 1)
                    numbers.append(atom.element.atomic_number)
                    positions.append(atom.pos.tolist())
    if not numbers:
        raise DataError(f"{path} has no atoms but hydrogens and water; expected the coordinates of a structure")
    if not np.isfinite(positions).all():
        raise DataError(f"{path} has coordinates that are not finite; download it again")
    return names, np.array(chain_of), np.array(numbers, np.uint8), np.array(positions, np.float64)


def _of_chains(structure: str, chains: str, names: list[str], chain_of: np.ndarray) -> np.ndarray:
    """Mask of the atoms in the given chains."""
    if chains == "all":
        return np.ones(len(chain_of), bool)
    present = [name for i, name in enumerate(names) if (chain_of == i).any()]
    chosen = [name.strip() for name in chains.split(",")]
    for chain in chosen:
        if chain not in present:
            raise DataError(f"{structure} has no chain {chain!r}; it has {', '.join(present)}")
    return np.isin(chain_of, [i for i, name in enumerate(names) if name in chosen])
