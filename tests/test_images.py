"""Pictures: every colour mode comes out as RGB, and no hostile or broken file gets through unnamed."""

import os
import struct
import zlib

import pytest
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.images import ImageStore, crop_box

RED, WHITE = (255, 0, 0), (255, 255, 255)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def near(pixel, wanted, tolerance=6):
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True))


def png(width, height, body=b""):
    """A PNG that claims a size, whatever its body holds."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "extension", ["jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "TIFF", "JPG", "Png"]
)
def test_an_id_is_found_with_any_extension(folder, extension):
    Image.new("RGB", (8, 4), RED).save(folder / f"x.{extension}")
    store = ImageStore(folder)
    assert "x" in store
    assert "y" not in store
    assert store.path("x").name == f"x.{extension}"
    assert store.load("x").size == (8, 4)
    assert near(store.load("x").getpixel((4, 2)), RED)


def test_the_content_decides_not_the_extension(folder):
    Image.new("RGB", (4, 4), RED).save(folder / "x.png")
    (folder / "x.png").rename(folder / "x.jpg")
    Image.new("P", (4, 4)).save(folder / "y.gif")
    (folder / "y.gif").rename(folder / "y.jpg")
    assert ImageStore(folder).load("x").getpixel((0, 0)) == RED
    assert ImageStore(folder).load("y").mode == "RGB"


def picture(mode):
    """A 4 x 4 picture whose left half is transparent (where the mode can) and whose right half is red, or grey."""
    rgba = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    rgba.paste((*RED, 255), (2, 0, 4, 4))
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([9, 9, 9, *RED])
        palette.paste(1, (2, 0, 4, 4))
        palette.info["transparency"] = 0
        return palette
    return rgba if mode == "RGBA" else rgba.convert("LA")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(folder, mode):
    image = picture(mode)
    image.save(folder / "x.png", transparency=0) if mode == "P" else image.save(folder / "x.png")
    loaded = ImageStore(folder).load("x")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((0, 0)) == WHITE
    assert near(loaded.getpixel((3, 3)), RED if mode != "LA" else (76, 76, 76))


def test_a_transparent_colour_of_an_opaque_picture_is_laid_on_white(folder):
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(folder / "x.png", transparency=(1, 2, 3))
    loaded = ImageStore(folder).load("x")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [WHITE, RED]


def test_cmyk_and_grey_and_two_colours_become_rgb(folder):
    Image.new("RGB", (8, 8), RED).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    Image.new("L", (8, 8), 100).save(folder / "grey.png")
    Image.new("1", (8, 8), 1).save(folder / "bit.png")
    store = ImageStore(folder)
    assert near(store.load("cmyk").getpixel((4, 4)), RED, 12)
    assert store.load("grey").getpixel((4, 4)) == (100, 100, 100)
    assert store.load("bit").getpixel((4, 4)) == WHITE


def test_sixteen_bits_are_scaled_not_clipped(folder):
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 32896, 65535)):
        image.putpixel((x, 0), value)
    image.save(folder / "x.png")
    loaded = ImageStore(folder).load("x")
    assert [loaded.getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_pixels_of_floating_point_are_refused_not_read_as_black(folder):
    Image.new("F", (30, 30), 0.5).save(folder / "scan.tif")
    with pytest.raises(InputError, match=r"scan\.tif: pixels of floating point"):
        ImageStore(folder).load("scan")


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [(1, (8, 4), (0, 0)), (6, (4, 8), (3, 0)), (3, (8, 4), (7, 3))],
)
def test_pictures_stand_upright(folder, orientation, size, corner):
    image = Image.new("RGB", (8, 4), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(folder / "x.png", exif=exif)
    loaded = ImageStore(folder).load("x")
    assert loaded.size == size
    assert loaded.getpixel(corner) == RED


def test_truncated_files_are_named(folder):
    noise = Image.effect_noise((64, 64), 90)
    for name in ("x.jpg", "y.png", "z.webp"):
        noise.convert("RGB").save(folder / name)
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: len(raw) // 2])
        with pytest.raises(InputError, match=rf"{name}: no readable picture, corrupt or truncated"):
            ImageStore(folder).load(name[0])


@pytest.mark.parametrize(
    "raw", [b"", b"<html>404</html>", b"\xff\xd8\xff\xe0" + bytes(99), png(4, 4), png(4, 0)]
)
def test_what_is_no_picture_is_named(folder, raw):
    (folder / "x.jpg").write_bytes(raw)
    with pytest.raises(InputError, match=r"x\.jpg: no readable picture"):
        ImageStore(folder).load("x")


@pytest.mark.parametrize(
    ("width", "height"), [(3, 4), (9000, 9000), (15_000, 15_000), (50_000, 50_000)]
)
def test_too_many_pixels_are_refused_before_decoding(folder, width, height):
    (folder / "x.png").write_bytes(png(width, height))
    with pytest.raises(InputError, match=r"x\.png: .* pixels.* allowed; resize it"):
        ImageStore(folder, max_pixels=11).load("x")
    if width > 3:
        with pytest.raises(InputError, match=r"x\.png: .* pixels.* allowed; resize it"):
            ImageStore(folder).load("x")


def test_the_exact_number_of_pixels_is_allowed(folder):
    Image.new("RGB", (5, 4)).save(folder / "x.png")
    assert ImageStore(folder, max_pixels=20).load("x").size == (5, 4)
    with pytest.raises(InputError, match=r"x\.png: 5 x 4 pixels, more than the 19 allowed"):
        ImageStore(folder, max_pixels=19).load("x")


@pytest.mark.parametrize("size", [(4000, 3), (3000, 10), (10, 3000), (201, 1), (1, 201)])
def test_a_picture_that_is_too_long_for_its_width_is_refused_by_name(folder, size):
    Image.new("RGB", size).save(folder / "x.png")
    with pytest.raises(
        InputError, match=rf"x\.png: {size[0]} x {size[1]} pixels, .* crop or pad it"
    ) as error:
        ImageStore(folder).load("x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (2000, 10)])
def test_the_longest_pictures_that_the_models_take_are_let_pass(folder, size):
    import cir_cot.compat  # noqa: F401  # isort: skip
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    Image.new("RGB", size).save(folder / "x.png")
    assert ImageStore(folder).load("x").size == size
    assert smart_resize(*size)
    with pytest.raises(ValueError, match="aspect ratio must be smaller than 200"):
        smart_resize(201, 1)


def test_too_many_bytes_are_refused(folder):
    Image.effect_noise((64, 64), 90).save(folder / "x.png")
    size = (folder / "x.png").stat().st_size
    assert ImageStore(folder, max_bytes=size).load("x").size == (64, 64)
    with pytest.raises(
        InputError, match=rf"x\.png: {size} bytes, more than the {size - 1} allowed"
    ):
        ImageStore(folder, max_bytes=size - 1).load("x")


def test_a_missing_picture_lists_what_was_looked_for(folder):
    with pytest.raises(
        InputError,
        match=r"image 'x' is missing: no x\.jpg or x\.jpeg or .* or x\.heif in .*images",
    ):
        ImageStore(folder).load("x")
    with pytest.raises(InputError, match="absent: no such folder"):
        ImageStore(folder / "absent")


@pytest.fixture
def outside(folder):
    """A picture beside the folder."""
    Image.new("RGB", (4, 4)).save(folder.parent / "secret.png")
    return folder.parent / "secret.png"


def test_ids_do_not_leave_the_folder(folder, outside):
    absolute = str(outside.with_suffix(""))
    for name in ("../secret", "a/../../secret", absolute, "..\\secret", "x\0"):
        store = ImageStore(folder)
        assert name not in store
        with pytest.raises(InputError, match="is refused: .* leaves the folder"):
            store.load(name)
        with pytest.raises(InputError, match="is refused: .* leaves the folder"):
            ImageStore(folder, {"x": f"{name}.png"}).load("x")


def test_links_do_not_leave_the_folder(folder, outside):
    (folder / "x.png").symlink_to(outside)
    (folder / "up").symlink_to(folder.parent)
    for name in ("x", "up/secret"):
        with pytest.raises(InputError, match="is a link out of the folder"):
            ImageStore(folder).load(name)


def test_links_within_the_folder_and_to_the_folder_are_followed(folder):
    (folder / "sub").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "sub" / "a.png")
    (folder / "b.png").symlink_to(folder / "sub" / "a.png")
    (folder.parent / "link").symlink_to(folder)
    store = ImageStore(folder.parent / "link")
    assert store.load("b").size == store.load("sub/a").size == (4, 4)


def test_names_that_no_file_can_have_are_refused(folder):
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    for name in ("x" * 5000, "loop"):
        assert name not in ImageStore(folder)
        with pytest.raises(InputError):
            ImageStore(folder).load(name)


def test_a_pipe_is_no_picture(folder):
    os.mkfifo(folder / "x.png")
    with pytest.raises(InputError, match="is missing"):
        ImageStore(folder).load("x")


def test_files_may_be_a_mapping_or_a_function(folder):
    Image.new("RGB", (4, 4), RED).save(folder / "000000000007.png")
    assert ImageStore(folder, {"7": "000000000007.png"}).load("7").getpixel((0, 0)) == RED
    assert (
        ImageStore(folder, lambda name: f"{int(name):012d}.png").load("7").getpixel((0, 0)) == RED
    )
    with pytest.raises(InputError, match="image '8' is unknown: it is not among the 1 of"):
        ImageStore(folder, {"7": "000000000007.png"}).load("8")


def test_boxes_are_cut_as_genecis_cuts_them():
    """0.7 of the box to the left and the top only, clipped at the edges, then black bars to a square."""
    image = Image.new("RGB", (100, 80), WHITE)
    cut = crop_box(image, (50, 40, 10, 20), "x")  # left 43, top 26, right 43 + 17, bottom 26 + 34
    assert cut.size == (34, 34)
    assert [cut.getpixel((x, 5)) for x in (7, 8, 24, 25)] == [(0, 0, 0), WHITE, WHITE, (0, 0, 0)]
    assert crop_box(image, (-2, 0, 10, 10), "x").size == (
        17,
        17,
    )  # clipped at 0, so 17 to the right of it
    assert crop_box(image, (90, 70, 20, 20), "x").size == (
        24,
        24,
    )  # left 76, top 56, clipped at 100 and 80


@pytest.mark.parametrize(
    ("size", "box"),
    [((8, 4), (20, 0, 5, 5)), ((8, 4), (3, 3, 0.1, 9)), ((9000, 60), (0, 0, 9000, 60))],
)
def test_boxes_that_cannot_be_cut_are_refused(folder, size, box):
    Image.new("RGB", size).save(folder / "a.png")
    with pytest.raises(InputError, match=r"a\.png: cannot cut the box .* out of"):
        ImageStore(folder, {"a": "a.png"}, {"a": box}).load("a")


def test_the_store_cuts_the_boxes_it_knows(folder):
    Image.new("RGB", (100, 80), WHITE).save(folder / "a.png")
    store = ImageStore(folder, {"a": "a.png", "a_box": "a.png"}, {"a_box": (50, 40, 10, 20)})
    assert store.load("a").size == (100, 80)
    assert store.load("a_box").size == (34, 34)


def test_two_boxes_of_a_picture_have_two_fingerprints(folder):
    Image.new("RGB", (100, 80), WHITE).save(folder / "a.png")
    files = dict.fromkeys(("whole", "one", "two"), "a.png")
    store = ImageStore(folder, files, {"one": (50, 40, 10, 20), "two": (50, 40, 10, 21)})
    assert len({store.fingerprint(name) for name in files}) == 3
