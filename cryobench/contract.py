"""The version of the contract of plugins, and the entry-point group in which a distribution declares its own.

    [project.entry-points."cryobench.contract"]
    2 = "my_package"

Imports only the standard library.
"""

CONTRACT = 2
"""The version of what the classes in `cryobench.core` require of plugins; docs/plugins.md lists the changes."""
GROUP = "cryobench.contract"


def mismatch(number: str) -> str | None:
    """Why a distribution that declares contract `number` cannot be used, as the end of a message; None if it can."""
    if number == str(CONTRACT):
        return None
    if not number.isdecimal():
        return (
            f"declares contract {number!r}, expected a number; write {CONTRACT} under {GROUP!r} in its pyproject.toml"
        )
    remedy = "upgrade cryobench" if int(number) > CONTRACT else "install a newer release, or see docs/plugins.md"
    return f"was written for contract {number}, and this version of cryobench has contract {CONTRACT}; {remedy}"
