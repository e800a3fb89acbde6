"""Downloads from Google Drive."""
import glob
import os
import sys
import threading
from typing import Any

from dassl.utils import InputError, open_own
from dassl.utils.optional import module_of_extra
from tools.downloads.disk import check_file, check_size, forget, full_disk, need_space, size_of
from tools.downloads.transfer import TIMEOUT, Clock, shown


def download_from_drive(file_id, path, md5="", size=0, most=sys.maxsize):
    """Fetch a file from Google Drive, whose pages of warnings gdown knows. Ends and raises InputError as `download`
    does."""
    gdown: Any = module_of_extra("gdown", "data", f"a file of Google Drive ({path})")
    url = f"https://drive.google.com/file/d/{file_id}"
    parts = f"{glob.escape(path)}????????.part"  # what gdown goes on from
    for part in glob.glob(parts):
        open_own(part, "ab").close()
    clock = Clock(f"the download of {url}", sum(map(size_of, glob.glob(parts))))
    ended, cancel = threading.Event(), threading.Event()

    def told(have, total):
        clock.reached(have)
        if max(have, total or 0) > (size or most):
            for part in glob.glob(parts):
                forget(part)
            check_size(max(have, total or 0), size, most, url)
        need_space(os.path.dirname(path), (total or have) - have)

    def watch():
        while not ended.wait(0.5):
            if clock.over:
                cancel.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        with full_disk(path):
            gdown.download(id=file_id, output=path, resume=True, quiet=not sys.stderr.isatty(), timeout=TIMEOUT,
                           progress=told, cancel=cancel)
    except InputError:
        raise
    except gdown.exceptions.DownloadCancelled:
        raise clock.too_slow() from None
    except Exception as error:  # pages that it does not expect end in whatever its reading of them raises
        raise InputError(f"Google Drive does not give the file {file_id}: {shown(str(error).strip() or repr(error))}; "
                         f"open {url}/view in a browser and save it as {path}") from None
    finally:
        ended.set()
    check_file(path, md5, size, url)
