"""What training takes from folders: pictures, clips of any suffix, folders of numbered frames."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from sparsecodec.data.images import SUFFIXES
from sparsecodec.data.picture_folders import is_picture_folder, list_frames
from sparsecodec.data.video import CLIP_SUFFIXES, has_video, is_clip, why_not_decodable
from sparsecodec.errors import UsageError

logger = logging.getLogger(__name__)

NAMED_AT_MOST = 20
# What lies beside pictures and clips and is neither. FFmpeg would take some of it for a terminal recording, follow the
# links of another, and show the cover of a song.
OTHER_SUFFIXES = frozenset(
    {
        *("", ".txt", ".md", ".rst", ".log", ".nfo", ".ans", ".csv", ".tsv", ".json", ".jsonl", ".toml", ".yaml"),
        *(".yml", ".xml", ".html", ".ini", ".cfg", ".conf", ".py", ".ipynb", ".sh", ".c", ".h", ".cpp", ".pdf"),
        *(".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".npy", ".npz", ".pkl", ".h5", ".db", ".lmdb", ".bin"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".spc", ".spv", ".part", ".partial"),
        *(".m3u", ".m3u8", ".mpd", ".pls", ".sdp", ".ffconcat", ".srt", ".ass", ".vtt", ".sub"),
        *(".mp3", ".m4a", ".aac", ".flac", ".wav", ".ogg", ".oga", ".opus", ".wma", ".mid"),
    }
)


def list_training_files(folders: Iterable[str | Path], frames: int = 1) -> list[Path]:
    """The pictures and clips directly inside each folder, sorted by name, folder after folder.

    A file of a suffix that is neither known as media nor as something else is a clip if PyAV, where it is installed,
    finds video in it. What is not taken is named in one warning per folder; hidden files are not.

    Args:
        folders: that are looked into, without those inside them.
        frames: of a crop; from 2 on, a folder inside that holds numbered pictures of one suffix is a clip, too.

    Raises:
        UsageError: one is not a folder, or holds nothing of the kind.
    """
    paths = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder")
        found, left = [], []
        for path in sorted(folder.iterdir()):
            reason = _why_not(path, frames)
            if reason is None:
                found.append(path)
            elif not path.name.startswith("."):
                left.append(f"{path.name} ({reason})")
        rest = "; ".join(
            [*left[:NAMED_AT_MOST], *([f"{len(left) - NAMED_AT_MOST} more"] * (len(left) > NAMED_AT_MOST))]
        )
        if not found:
            kinds = f"suffixes {', '.join((*SUFFIXES, *CLIP_SUFFIXES))}, or what PyAV reads"
            raise UsageError(f"no pictures or clips in {folder} ({kinds})" + (f": not taken: {rest}" if rest else ""))
        if rest:
            logger.warning("skipped in %s: %s", folder, rest)
        paths += found
    return paths


def _why_not(path: Path, frames: int) -> str | None:
    """Why `path` is neither a picture nor a clip by its name or its first bytes, None if it is one."""
    if path.is_dir():
        return _why_no_frames(path, frames)
    suffix = path.suffix.lower()
    if suffix in SUFFIXES or is_clip(path):
        return None
    if suffix in OTHER_SUFFIXES or path.name.startswith("."):
        return "no picture or clip"
    return why_not_decodable(path) or (None if path.is_file() and has_video(path) else "PyAV finds no video in it")


def _why_no_frames(folder: Path, frames: int) -> str | None:
    if not is_picture_folder(folder):
        return "a folder without pictures"
    if frames < 2:
        return "a folder inside, a clip only for recipes with frames >= 2"
    try:
        names = [re.sub(r"\d+", "", path.name) for path in list_frames(folder)]
    except UsageError:
        return "a folder of pictures of several suffixes"
    return None if len(set(names)) == 1 else "a folder of pictures that are not numbered alike"
