"""Pictures and clips in and out, and the crops that training draws."""

from sparsecodec.data.crops import RandomClips, RandomCrops, list_training_files
from sparsecodec.data.images import list_images, read_image, to_uint8, write_image
from sparsecodec.data.video import Clip, list_clips, read_clip

__all__ = [
    "Clip",
    "RandomClips",
    "RandomCrops",
    "list_clips",
    "list_images",
    "list_training_files",
    "read_clip",
    "read_image",
    "to_uint8",
    "write_image",
]
