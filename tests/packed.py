"""Archives for tests, also such as no program makes."""
import io
import os
import tarfile
import warnings
import zipfile

import numpy as np
from scipy.io import savemat


def tar(entries, mode="w:gz", **words):
    """A tar of {path: bytes, or a TarInfo}, or of such pairs, where a path comes twice."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **words) as file:
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def member(name, kind=tarfile.REGTYPE, **attributes):
    """A TarInfo without content, whatever its size says."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def link(name, target, kind=tarfile.SYMTYPE):
    return member(name, kind, linkname=target)


def zipped(entries, method=zipfile.ZIP_STORED):
    """A zip of {path or ZipInfo: bytes}, or of such pairs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that comes twice
        for name, content in entries.items() if isinstance(entries, dict) else entries:
            file.writestr(name, content)
    return buffer.getvalue()


def zip_member(name, kind=0o100644):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, kind << 16
    return info


def imagenet(classes, numbers):
    """ImageNet's three archives in small: {"train", "val", "devkit": bytes}.

    classes: {folder: content of its one image}; numbers: the class of each validation image, from 1 on."""
    train = {f"{folder}.tar": tar({f"{folder}_1.JPEG": body}, "w:") for folder, body in classes.items()}
    val = {f"ILSVRC2012_val_{i:08}.JPEG": bytes([i]) for i in range(len(numbers))}
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(i + 1, folder, folder, "", 0) for i, folder in enumerate(classes)] + [(99, "n99999999", "all", "", 2)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    data = "ILSVRC2012_devkit_t12/data"
    devkit = {f"{data}/meta.mat": meta.getvalue(), f"{data}/ILSVRC2012_validation_ground_truth.txt":
              "".join(f"{number}\n" for number in numbers).encode()}
    return {"train": tar(train, "w:"), "val": tar(val, "w:"), "devkit": tar(devkit)}


def plant(kind, path, victim):
    """Put something of a kind where a file is to be."""
    if kind == "link":
        path.symlink_to(victim)
    elif kind == "hard_link":
        os.link(victim, path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
