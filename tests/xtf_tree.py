"""A directory in the layout of XTF's built tests, made of the project's own payloads: the project ships no XTF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

# name: category, environments, what goes to the command line, variations
TESTS: Mapping[str, tuple[str, tuple[str, ...], str, tuple[str, ...]]] = {
    "good": ("functional", ("pv64", "pv32pae"), "work=mode xtf=1", ("one", "two")),
    "firmware": ("functional", ("hvm64", "hvm32"), "", ()),  # which gets no command line
    "skipping": ("functional", ("pv64",), "work=mode xtf=1 xtf_result=SKIP", ()),
    "erring": ("xsa", ("pv64",), "work=mode xtf=1 xtf_result=ERROR", ()),
    "failing": ("xsa", ("pv32pae",), "work=mode,nonsense xtf=1", ()),
    "crashing": ("xsa", ("pv64",), "work=trap xtf=1", ()),
    "extra": ("utility", ("pv64",), "work=mode xtf=1", ()),
}
KERNELS = {"pv64": "pv64", "pv32pae": "pv32", "hvm64": "hvm64", "hvm32": "hvm32"}
PV = 'type="pv"\nloader="generic" # Legacy\n\nmemory=32\nkernel="{kernel}"\nextra="{words}"\n'
HVM = 'type="hvm"\nbuilder="hvm" # Legacy\n\nmemory=32\nfirmware_override="{kernel}"\n\non_reboot = "destroy"\n'


def make(directory: Path, payloads: Mapping[str, Path]) -> Path:
    """The directory, with kernels out of ``payloads`` as :func:`lab.xen.payloads.build_payloads` gives them."""
    for name, (category, environments, words, variations) in TESTS.items():
        folder = directory / "tests" / name
        folder.mkdir(parents=True)
        info = {"name": name, "category": category, "environments": environments, "variations": variations}
        (folder / "info.json").write_text(json.dumps(info, indent=4))
        for environment in environments:
            kernel = folder / f"test-{environment}-{name}"
            shutil.copyfile(payloads[KERNELS[environment]], kernel)
            for suffix in [f"~{variation}" for variation in variations] or [""]:
                form = HVM if environment.startswith("hvm") else PV
                rest = form.format(kernel=f"/opt/xtf/tests/{name}/{kernel.name}", words=words)
                cfg = f'name="{kernel.name}{suffix}"\n\nvcpus=1\n\n{rest}'
                (folder / f"{kernel.name}{suffix}.cfg").write_text(cfg)
    return directory
