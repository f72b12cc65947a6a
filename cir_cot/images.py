"""Load images by id from one folder; hostile, broken and unusual files end in one clear InputError.

What is guaranteed:

- no file outside the folder is opened: ids are checked, and links are followed before the check;
- no file is decoded before its size in bytes and pixels is known;
- an image is either complete and of a shape that every model takes, or refused.
"""

import io
import stat
import struct
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from PIL import Image, ImageOps

from .digests import digest_bytes
from .errors import InputError
from .picture_files import EXTENSIONS, spelled_otherwise, unique_pictures

# Formats by content: FashionIQ's .jpg files hold several. JPEG opens MPO, too.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_PIXELS = 2**26  # 67 megapixels, 200 MB as RGB: above any camera in the public benchmarks
MAX_BYTES = 2**26  # of a file
MAX_RATIO = 200  # longer side to shorter one: the processors of Qwen-VL raise on more
BOX_MARGIN = 0.7  # share of a box's sides that GeneCIS's loader adds

# What Pillow's decoders and EXIF reader raise on broken data.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    ZeroDivisionError,
)
BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


class ImageStore:
    """Load the images of a dataset by their ids.

    Args:
        root: the folder.
        files: maps ids to paths relative to `root`: a mapping, or a function of the id that workers
            can pickle. Without it, an id is the file `<root>/<id>` with one of EXTENSIONS.
        boxes: {id: box} of GeneCIS's objects; the image is cropped to the box as the official
            loader does.
        max_pixels: of an image.
        max_bytes: of a file.

    Raises:
        InputError: the folder does not exist.

    Example:
        >>> store = ImageStore("data/images")
        >>> "dress-17" in store, store.load("dress-17").size
        (True, (300, 400))
    """

    def __init__(
        self,
        root: str | Path,
        files: Mapping[str, str] | Callable[[str], str] | None = None,
        boxes: Mapping[str, Box] | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
    ):
        if not Path(root).is_dir():
            raise InputError(f"{root}: no such folder of pictures")
        self.root = Path(root).resolve()
        self.files = files
        self.boxes = boxes or {}
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes

    def path(self, image_id: str) -> Path:
        """Return the file of an image; InputError lists what was tried, or why the id is refused."""
        names = self._names(image_id)
        for name in names:
            path = self._inside(name, image_id)
            if path.is_file():
                return path

        # the extension may be in upper case: cameras write .JPG
        if self.files is None:
            wanted = self._inside(names[0], image_id)
            other = spelled_otherwise(wanted.parent, Path(names[0]).stem)
            if other:
                return self._inside(str(PurePosixPath(image_id).with_name(other)), image_id)
        raise InputError(f"image {image_id!r} is missing: no {' or '.join(names)} in {self.root}")

    def __contains__(self, image_id: str) -> bool:
        """Return whether the image's file exists; it is not opened."""
        try:
            return bool(self.path(image_id))
        except InputError:
            return False

    def load(self, image_id: str) -> Image.Image:
        """Return an image in RGB, upright by its EXIF orientation, transparent pixels on white."""
        path = self.path(image_id)
        picture = decode(self._read(path), str(path), self.max_pixels)
        if image_id in self.boxes:
            return crop_box(picture, self.boxes[image_id], str(path))
        return picture

    def fingerprint(self, image_id: str) -> str:
        """Return a digest of what `load` decodes: the file's bytes, and the box if there is one."""
        # the same file has another fingerprint with another box
        content = self._read(self.path(image_id)) + repr(self.boxes.get(image_id, "")).encode()
        return digest_bytes(content)

    def _names(self, image_id: str) -> list[str]:
        """Return the relative paths that an id may have."""
        # ids are names of files
        if self.files is None:
            return [image_id + extension for extension in EXTENSIONS]
        if callable(self.files):
            return [self.files(image_id)]
        if image_id not in self.files:
            raise InputError(
                f"image {image_id!r} is unknown: it is not among the {len(self.files)} of {self.root}"
            )
        return [self.files[image_id]]

    def _inside(self, name: str, image_id: str) -> Path:
        """Return the path of a name, with links followed; InputError if it leaves the folder."""
        # refuse what leaves the folder by its name
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
            raise InputError(
                f"image {image_id!r} is refused: {name!r} leaves the folder {self.root}"
            )

        # follow links, then refuse what leaves the folder by a link
        try:
            path = (self.root / name).resolve()
            path.is_file()  # raises on a name the file system cannot hold
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"image {image_id!r} cannot be looked up in {self.root}: {error}"
            ) from error
        if not path.is_relative_to(self.root):
            raise InputError(
                f"image {image_id!r} is refused: {name!r} is a link out of the folder {self.root}"
            )
        return path

    def _read(self, path: Path) -> bytes:
        """Return the bytes of a file of at most `max_bytes`."""
        try:
            with path.open("rb") as file:
                # one byte more shows that the file is too large
                raw = file.read(self.max_bytes + 1)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        if len(raw) > self.max_bytes:
            size = path.stat()[stat.ST_SIZE]
            raise InputError(
                f"{path}: {size} bytes, more than the {self.max_bytes} allowed; save it smaller"
            )
        return raw


def decode(raw: bytes, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the bytes of a picture to an upright RGB image; of several frames the first.

    JPEG, PNG, WebP, GIF, TIFF and BMP are read, and HEIC with the extra `heic`.

    Raises:
        InputError: names `where` and what is wrong: truncated, corrupt, too large, or too narrow
            for Qwen-VL.
    """
    formats: tuple[str, ...] = FORMATS
    if raw[4:8] == b"ftyp" and raw[8:12] in HEIC_BRANDS:
        formats = heic_formats(where)
    try:
        with Image.open(io.BytesIO(raw), formats=formats) as picture:
            # opening reads the header only: refuse by the size before decoding
            check_size(*picture.size, where, max_pixels)
            if picture.mode == "F":
                raise InputError(
                    f"{where}: pixels of floating point, of unknown range; save it with 8 or 16 bits"
                )

            # decode
            picture.load()
            return to_rgb(ImageOps.exif_transpose(picture))
    except BOMBS as error:
        raise InputError(
            f"{where}: far more than the {max_pixels} pixels allowed; resize it"
        ) from error
    except InputError:
        raise
    except (*DECODE_ERRORS, struct.error) as error:
        raise InputError(
            f"{where}: no readable picture, corrupt or truncated ({error}); replace the file"
        ) from error


def check_size(width: int, height: int, where: str, max_pixels: int = MAX_PIXELS) -> None:
    """Raise InputError for a picture with too many pixels, or too narrow for Qwen-VL."""
    if width * height > max_pixels:
        raise InputError(
            f"{where}: {width} x {height} pixels, more than the {max_pixels} allowed; resize it"
        )
    check_ratio(width, height, where)


def check_ratio(width: int, height: int, where: str) -> None:
    """Raise InputError for a picture too narrow for Qwen-VL, whose processors raise on it."""
    if max(width, height) > MAX_RATIO * min(width, height) > 0:
        raise InputError(
            f"{where}: {width} x {height} pixels, one side more than {MAX_RATIO} times the "
            "other, which no Qwen-VL model takes; crop or pad it"
        )


def heic_formats(where: str) -> tuple[str, ...]:
    """Teach Pillow to read HEIC and return its name there; InputError where pillow-heif is missing."""
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(
            f"{where}: a HEIC picture needs pillow-heif: pip install 'cir-cot[heic]', or save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any colour mode to RGB: transparent pixels on white, 16 bits scaled to 8."""
    # Pillow clips 16 bits to 8 instead of scaling them
    if picture.mode in ("I", "I;16", "I;16B", "I;16L"):
        picture = picture.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    # palettes may have transparent colours, too
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def crop_box(picture: Image.Image, box: Box, where: str) -> Image.Image:
    """Crop an image to a box as GeneCIS's official loader does.

    Its quirk is kept: 0.7 of the box is added to the left and the top only, as far as the image
    reaches. Black bars then make the result square.
    """
    x, y, width, height = box
    left = max(0, x - BOX_MARGIN * width)
    top = max(0, y - BOX_MARGIN * height)
    right = min(picture.width, left + (1 + BOX_MARGIN) * width)
    bottom = min(picture.height, top + (1 + BOX_MARGIN) * height)

    # a box outside the image, and one of an absurd size
    side = max(round(right) - round(left), round(bottom) - round(top))
    if round(right) <= round(left) or round(bottom) <= round(top) or side * side > MAX_PIXELS:
        raise InputError(
            f"{where}: cannot cut the box {box} out of {picture.width} x {picture.height} pixels"
        )
    # crop, and centre on a black square
    cut = picture.crop((left, top, right, bottom))
    square = Image.new("RGB", (side, side))
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    return square


def list_pictures(root: str | Path) -> ImageStore:
    """Return a store of every picture below a folder; ids are relative paths without the extension.

    Raises:
        InputError: the folder does not exist or has no picture, or two pictures have the same id.
    """
    return ImageStore(root, unique_pictures(root).files)
