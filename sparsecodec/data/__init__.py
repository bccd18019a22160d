"""Pictures and clips in and out, and the crops that training draws."""

from sparsecodec._clip_format import ClipFormat
from sparsecodec.data.colour import to_frame, to_planes, to_rgb
from sparsecodec.data.crops import RandomClips, RandomCrops
from sparsecodec.data.images import has_transparency, list_images, read_image, to_uint8, write_image
from sparsecodec.data.picture_folders import PictureWriter
from sparsecodec.data.training_files import list_training_files
from sparsecodec.data.video import Clip, list_clips, read_clip
from sparsecodec.data.video_io import ClipWriter, open_clip

__all__ = [
    "Clip",
    "ClipFormat",
    "ClipWriter",
    "PictureWriter",
    "RandomClips",
    "RandomCrops",
    "has_transparency",
    "list_clips",
    "list_images",
    "list_training_files",
    "open_clip",
    "read_clip",
    "read_image",
    "to_frame",
    "to_planes",
    "to_rgb",
    "to_uint8",
    "write_image",
]
