"""Pictures in and out, and the crops that training draws."""

from sparsecodec.data.crops import RandomCrops
from sparsecodec.data.images import list_images, read_image, to_uint8, write_image

__all__ = ["RandomCrops", "list_images", "read_image", "to_uint8", "write_image"]
