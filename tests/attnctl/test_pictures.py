"""Pictures as people have them: odd kinds are read rightly, bad ones are refused in one clear line."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from attnctl.errors import InputError, NumericsError
from attnctl.files import sha256_of_file
from attnctl.pictures import LoadedPicture, crop_box, load_picture, save_png, to_image
from attnctl.runs import decode


def levels(picture: LoadedPicture) -> np.ndarray:
    """The 8-bit levels (H, W, 3) behind a loaded picture."""
    return np.rint((picture.pixels.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def quadrants() -> Image.Image:
    """32 high, 48 wide: red, green above; blue, white below. Every rotation of it looks different."""
    image = Image.new("RGB", (48, 32))
    for box, colour in [
        ((0, 0, 24, 16), "red"),
        ((24, 0, 48, 16), "lime"),
        ((0, 16, 24, 32), "blue"),
        ((24, 16, 48, 32), "white"),
    ]:
        image.paste(colour, box)
    return image


def refused(path: os.PathLike[str] | str, *words: str, **kwargs) -> InputError:
    with pytest.raises(InputError) as caught:
        load_picture(path, **kwargs)
    error = caught.value
    assert "\n" not in error.message
    assert "\n" not in error.hint
    assert error.hint
    for word in words:
        assert word in error.message
    return error


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that states a size and has almost no data: a decompression bomb as far as the header tells."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\0"))
        + png_chunk(b"IEND", b"")
    )


class TestOrdinary:
    def test_a_png_of_the_right_size_is_read_exactly_and_without_notes(self, tmp_path):
        pixels = noise(24, 40)
        path = tmp_path / "a.png"
        Image.fromarray(pixels).save(path)
        picture = load_picture(path)
        assert picture.pixels.dtype == np.float32
        assert picture.pixels.shape == (3, 24, 40)
        assert picture.pixels.flags.c_contiguous
        assert picture.size == picture.original_size == (24, 40)
        assert picture.notes == ()
        assert picture.sha256 == sha256_of_file(path)
        np.testing.assert_array_equal(levels(picture), pixels)
        np.testing.assert_array_equal(
            picture.pixels, pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
        )

    def test_black_is_minus_one_and_white_is_one(self, tmp_path):
        image = Image.new("RGB", (2, 1), "black")
        image.putpixel((1, 0), (255, 255, 255))
        image.save(tmp_path / "a.png")
        np.testing.assert_array_equal(load_picture(tmp_path / "a.png").pixels[:, 0], [[-1, 1]] * 3)

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "ppm", "webp", "gif", "tga"])
    def test_common_formats(self, tmp_path, suffix):
        path = tmp_path / f"a.{suffix}"
        quadrants().save(path, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(levels(load_picture(path)), np.asarray(quadrants()))

    def test_the_suffix_does_not_matter(self, tmp_path):
        path = tmp_path / "photo.jpg"
        quadrants().save(path, format="PNG")
        np.testing.assert_array_equal(levels(load_picture(path)), np.asarray(quadrants()))

    @given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
    @settings(max_examples=25, deadline=None)
    def test_what_is_written_is_read_back_exactly(self, tmp_path_factory, height, width, seed):
        pixels = noise(height, width, seed=seed)
        path = tmp_path_factory.mktemp("round") / "a.png"
        save_png(Image.fromarray(pixels), path)
        picture = load_picture(path)
        np.testing.assert_array_equal(levels(picture), pixels)
        np.testing.assert_array_equal(np.asarray(to_image((picture.pixels + 1) / 2)), pixels)


class TestFit:
    def test_crop_takes_the_centre_and_says_so(self, tmp_path):
        pixels = noise(40, 101)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png", (40, 40))
        np.testing.assert_array_equal(levels(picture), pixels[:, 30:70])
        assert picture.notes == ("cropped from 101 x 40 to the centred 40 x 40",)
        assert picture.original_size == (40, 101)

    def test_crop_then_bicubic_equals_the_loader_of_published_code(self, tmp_path):
        pixels = noise(90, 121)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        offset = (121 - 90) // 2
        square = Image.fromarray(pixels[:, offset : offset + 90])
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
        got = load_picture(tmp_path / "a.png", (32, 32), resample="bicubic")
        np.testing.assert_array_equal(levels(got), expected)

    def test_stretch_keeps_everything_and_says_that_the_ratio_changed(self, tmp_path):
        quadrants().save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png", (16, 16), fit="stretch")
        got = levels(picture)
        assert [tuple(got[y, x]) for y, x in [(2, 2), (2, 13), (13, 2), (13, 13)]] == [
            (255, 0, 0),
            (0, 255, 0),
            (0, 0, 255),
            (255, 255, 255),
        ]
        assert picture.notes == ("stretched from 48 x 32 to 16 x 16, aspect ratio not kept",)

    def test_resizing_with_the_ratio_kept_is_not_worth_a_note(self, tmp_path):
        quadrants().save(tmp_path / "a.png")
        assert load_picture(tmp_path / "a.png", (16, 24)).notes == ()

    def test_enlarging_is_noted(self, tmp_path):
        Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png", (8, 16))
        assert set(map(tuple, levels(picture).reshape(-1, 3))) == {(10, 20, 30)}
        assert picture.notes == ("enlarged from 1 x 1 to 16 x 8, so details are missing",)

    @pytest.mark.parametrize("shape", [(2, 4000), (4000, 2)])
    def test_a_very_long_picture(self, tmp_path, shape):
        Image.fromarray(noise(*shape)).save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png", (16, 16))
        assert picture.size == (16, 16)
        assert any("2 x 2" in note for note in picture.notes)

    @given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 64), st.integers(1, 64))  # heights and widths
    def test_the_crop_box_keeps_the_ratio_is_inside_centred_and_largest(self, height, width, t_height, t_width):
        left, top, right, bottom = crop_box(height, width, t_height, t_width)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert right - left == width or bottom - top == height
        assert 0 <= (width - right) - left <= 1
        assert 0 <= (height - bottom) - top <= 1
        # The exact ratio is off by the rounding of the shortened side alone.
        if bottom - top == height and right - left < width:
            assert abs((right - left) - max(1, height * t_width / t_height)) <= 0.5
        elif right - left == width and bottom - top < height:
            assert abs((bottom - top) - max(1, width * t_height / t_width)) <= 0.5

    @given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90))
    @settings(max_examples=40, deadline=None)
    def test_nearest_stretch_equals_torch(self, tmp_path_factory, height, width, t_height, t_width):
        torch = pytest.importorskip("torch")
        pixels = noise(height, width)
        path = tmp_path_factory.mktemp("nearest") / "a.png"
        Image.fromarray(pixels).save(path)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        expected = torch.nn.functional.interpolate(tensor, (t_height, t_width))[0].numpy()
        got = load_picture(path, (t_height, t_width), fit="nearest-stretch")
        np.testing.assert_array_equal(got.pixels, expected)

    @pytest.mark.parametrize("size", [(0, 8), (8, -1), (100_000, 100_000)])
    def test_impossible_sizes(self, tmp_path, size):
        quadrants().save(tmp_path / "a.png")
        refused(tmp_path / "a.png", str(size[0]), size=size)

    def test_unknown_names_list_the_known_ones(self, tmp_path):
        quadrants().save(tmp_path / "a.png")
        refused(tmp_path / "a.png", "crop", "stretch", "nearest-stretch", fit="streched")
        refused(tmp_path / "a.png", "lanczos", "bicubic", "bilinear", resample="cubic")


class TestOddKinds:
    @pytest.mark.parametrize("orientation", range(2, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_exif_rotation_is_applied_and_noted(self, tmp_path, orientation, kind):
        undo = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_90,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_270,
        }
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "a"
        stored = quadrants().transpose(undo[orientation])
        stored.save(path, format=kind, exif=exif.tobytes(), **({"quality": 95} if kind == "JPEG" else {}))
        picture = load_picture(path)
        assert picture.original_size == (32, 48)
        assert "rotated as its EXIF orientation says" in picture.notes
        got = levels(picture).astype(int)
        for y, x in [(4, 4), (4, 43), (27, 4), (27, 43)]:  # away from the edges, where JPEG and WebP smear
            assert np.abs(got[y, x] - np.asarray(quadrants())[y, x]).max() <= 8

    def test_nearest_stretch_takes_the_stored_pixels_and_notes_what_it_ignored(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        rgba = noise(6, 10, channels=4)
        Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif.tobytes())
        picture = load_picture(tmp_path / "a.png", fit="nearest-stretch")
        np.testing.assert_array_equal(levels(picture), rgba[..., :3])
        assert any("EXIF" in note for note in picture.notes)
        assert any("transparency was dropped" in note for note in picture.notes)

    def test_damaged_exif_does_not_matter(self, tmp_path):
        quadrants().save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff")
        assert load_picture(tmp_path / "a.jpg").notes == ()

    @pytest.mark.parametrize(
        ("mode", "colour"), [("RGBA", (255, 0, 0)), ("LA", (200,)), ("P", None)], ids=["RGBA", "LA", "P"]
    )
    def test_transparency_is_laid_on_white(self, tmp_path, mode, colour):
        if mode == "P":
            image = Image.new("P", (2, 1), 0)
            image.putpalette([10, 20, 30, 40, 50, 60])
            image.putpixel((1, 0), 1)
            image.save(tmp_path / "a.png", transparency=0)
            expected = [(255, 255, 255), (40, 50, 60)]
        else:
            image = Image.new(mode, (2, 1), (*colour, 0))
            image.putpixel((1, 0), (*colour, 255))
            image.save(tmp_path / "a.png")
            expected = [(255, 255, 255), colour * (4 - len(colour) if len(colour) == 3 else 3)]
        picture = load_picture(tmp_path / "a.png")
        assert [tuple(p) for p in levels(picture)[0]] == expected
        assert "transparent parts laid on white" in picture.notes

    def test_half_transparent_black_becomes_middle_gray(self, tmp_path):
        Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(tmp_path / "a.png")
        assert levels(load_picture(tmp_path / "a.png")).tolist() == [[[127, 127, 127]]]

    def test_an_opaque_alpha_channel_is_not_worth_a_note(self, tmp_path):
        pixels = noise(5, 5)
        Image.fromarray(pixels).convert("RGBA").save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png")
        np.testing.assert_array_equal(levels(picture), pixels)
        assert picture.notes == ()

    def test_palette(self, tmp_path):
        quadrants().quantize(4).save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png")
        np.testing.assert_array_equal(levels(picture), np.asarray(quadrants()))
        assert picture.notes == ()

    @pytest.mark.parametrize("mode", ["L", "1"])
    def test_grayscale(self, tmp_path, mode):
        image = quadrants().convert(mode)
        image.save(tmp_path / "a.png")
        picture = load_picture(tmp_path / "a.png")
        np.testing.assert_array_equal(levels(picture), np.asarray(image.convert("RGB")))
        assert picture.notes == ("grayscale, used for red, green and blue alike",)

    @pytest.mark.parametrize("fit", ["crop", "nearest-stretch"])
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_16_bits_are_scaled_not_clipped(self, tmp_path, suffix, fit):
        wide = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
        Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
        picture = load_picture(tmp_path / f"a.{suffix}", fit=fit)
        assert levels(picture)[0, :, 0].tolist() == [0, 1, 128, 255]
        assert "16-bit values scaled to 8 bits" in picture.notes

    @pytest.mark.parametrize("kind", [np.int32, np.uint16])
    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_8_bit_levels_in_a_wider_file_are_not_black(self, tmp_path, suffix, kind):
        if kind is np.int32 and suffix == "png":
            pytest.skip("PNG has no 32-bit numbers")
        Image.fromarray(np.array([[0, 7, 128, 250]], dtype=kind)).save(tmp_path / f"a.{suffix}")
        picture = load_picture(tmp_path / f"a.{suffix}")
        assert levels(picture)[0, :, 0].tolist() == [0, 7, 128, 250]
        assert "levels up to 255 in a wider file scaled to 8 bits" in picture.notes

    def test_16_bit_colour(self, tmp_path):
        wide = np.array([[[0, 32768, 65535], [256, 512, 40000]]], dtype=">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in wide)
        header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
        chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
        got = levels(load_picture(tmp_path / "a.png")).astype(int)
        assert np.abs(got - np.rint(wide.astype(float) / 257)).max() <= 1

    @pytest.mark.parametrize(
        ("values", "expected"), [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 2.0, 255.0], [0, 2, 255])]
    )
    def test_floats(self, tmp_path, values, expected):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
        assert levels(load_picture(tmp_path / "a.tif"))[0, :, 0].tolist() == expected

    @pytest.mark.parametrize("values", [[-1.0, 0.5], [0.0, 300.0], [0.0, float("nan")]])
    def test_values_of_an_unknown_range_are_refused(self, tmp_path, values):
        Image.fromarray(np.array([values], dtype=np.float32)).save(tmp_path / "a.tif")
        refused(tmp_path / "a.tif", "expected 0 to")

    def test_cmyk_jpeg(self, tmp_path):
        quadrants().convert("CMYK").save(tmp_path / "a.jpg", quality=95)
        picture = load_picture(tmp_path / "a.jpg")
        got = levels(picture).astype(int)
        for y, x in [(4, 4), (4, 43), (27, 4), (27, 43)]:
            assert np.abs(got[y, x] - np.asarray(quadrants())[y, x]).max() <= 8
        assert picture.notes == ("converted from CMYK to RGB",)

    def test_an_animation_gives_its_first_frame(self, tmp_path):
        frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        picture = load_picture(tmp_path / "a.gif")
        assert levels(picture)[0, 0].tolist() == [255, 0, 0]
        assert picture.notes == ("several frames, the first was used",)

    def test_a_colour_profile_other_than_srgb_is_converted(self, tmp_path):
        pixels = np.full((2, 2, 3), (200, 100, 50), dtype=np.uint8)
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        Image.fromarray(pixels).save(tmp_path / "srgb.png", icc_profile=lab.tobytes())
        same = load_picture(tmp_path / "srgb.png")
        np.testing.assert_array_equal(levels(same), pixels)
        assert same.notes == ()
        swapped = _profile_with_red_and_blue_exchanged(lab.tobytes())
        Image.fromarray(pixels).save(tmp_path / "other.png", icc_profile=swapped)
        other = load_picture(tmp_path / "other.png")
        assert np.abs(levels(other)[0, 0].astype(int) - [50, 100, 200]).max() <= 3
        assert other.notes == ("colours converted from the profile 'XXXX built-in' to sRGB",)
        stored = load_picture(tmp_path / "other.png", fit="nearest-stretch")
        np.testing.assert_array_equal(levels(stored), pixels)

    def test_a_damaged_colour_profile_does_not_matter(self, tmp_path):
        pixels = noise(4, 4)
        Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=b"not a profile")
        np.testing.assert_array_equal(levels(load_picture(tmp_path / "a.png")), pixels)


def _profile_with_red_and_blue_exchanged(profile: bytes) -> bytes:
    """Exchange the colorants of red and blue in an ICC profile, and give it another name."""
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    renamed = swapped.replace("sRGB".encode("utf-16-be"), "XXXX".encode("utf-16-be"))
    assert renamed != profile
    return renamed


class TestHuge:
    def test_a_png_bomb_is_refused_before_it_is_decoded(self, tmp_path):
        for width, height in [(12_000, 8_000), (30_000, 30_000)]:  # above Pillow's warning, above its error
            (tmp_path / "a.png").write_bytes(png_header_only(width, height))
            refused(tmp_path / "a.png", "too large", "megapixels", size=(64, 64))

    def test_a_large_jpeg_is_read_at_reduced_scale(self, tmp_path, monkeypatch):
        monkeypatch.setattr(decode, "MAX_PIXELS", 100 * 100)
        monkeypatch.setattr(decode, "MAX_JPEG_PIXELS", 4 * 100 * 100)
        quadrants().resize((192, 128), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=95)
        picture = load_picture(tmp_path / "a.jpg", (16, 24))
        assert "very large (192 x 128), read at 96 x 64" in picture.notes
        got = levels(picture).astype(int)
        for y, x in [(4, 4), (4, 19), (12, 4), (12, 19)]:
            assert np.abs(got[y, x] - np.asarray(quadrants())[2 * y, 2 * x]).max() <= 8
        refused(tmp_path / "a.jpg", "too large", "192 x 128")  # without a target, all of it would be needed
        refused(tmp_path / "a.jpg", "too large", size=(16, 24), fit="nearest-stretch")
        quadrants().resize((192, 128)).save(tmp_path / "b.jpg", progressive=True)
        refused(tmp_path / "b.jpg", "too large", size=(16, 24))  # a progressive one is held whole by its decoder

    def test_a_jpeg_beyond_pillows_own_limit_is_read_at_reduced_scale(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50 * 50)  # errors above twice that
        monkeypatch.setattr(decode, "MAX_PIXELS", 50 * 50)
        monkeypatch.setattr(decode, "MAX_JPEG_PIXELS", 200 * 200)
        quadrants().resize((192, 128)).save(tmp_path / "a.jpg")
        assert load_picture(tmp_path / "a.jpg", (8, 8)).size == (8, 8)
        monkeypatch.setattr(decode, "MAX_JPEG_PIXELS", 100 * 100)
        refused(tmp_path / "a.jpg", "too large", "192 x 128", size=(8, 8))


class TestBad:
    def test_missing_names_its_neighbours(self, tmp_path):
        quadrants().save(tmp_path / "photo.png")
        error = refused(tmp_path / "foto.png", "there is no picture")
        assert "photo.png" in error.hint
        assert "does not exist" in refused(tmp_path / "no" / "foto.png").hint
        (tmp_path / "empty").mkdir()
        assert "no pictures" in refused(tmp_path / "empty" / "a.png").hint

    def test_a_folder(self, tmp_path):
        refused(tmp_path, "is a folder")

    def test_an_address(self):
        refused("https://example.org/cat.png", "address")

    @pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
    def test_a_device_is_not_read_for_ever(self):
        refused("/dev/zero", "not a regular file")

    @pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000])
    def test_an_impossible_name(self, tmp_path, name):
        refused(f"{tmp_path}/{name}", "cannot read")

    def test_zero_bytes(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"")
        refused(tmp_path / "a.png", "empty (0 bytes)")

    @pytest.mark.parametrize("content", [b"hello\n", b"\0" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
    def test_no_picture_at_all(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        error = refused(tmp_path / "a.png", "not a picture that can be read")
        assert "PNG" in error.hint

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
    def test_truncated(self, tmp_path, kind):
        buffer = io.BytesIO()
        Image.fromarray(noise(64, 64)).save(buffer, format=kind)
        whole = buffer.getvalue()
        (tmp_path / "a").write_bytes(whole[: len(whole) // 2])
        refused(tmp_path / "a")

    @pytest.mark.parametrize("kind", ["PNG", "GIF", "PPM"])
    def test_a_stated_size_of_zero(self, tmp_path, kind):
        if kind == "PNG":
            content = png_header_only(0, 5)
        elif kind == "GIF":
            content = b"GIF89a" + struct.pack("<HH", 0, 0) + b"\0\0\0;"
        else:
            content = b"P6 0 4 255\n"
        (tmp_path / "a").write_bytes(content)
        refused(tmp_path / "a")

    @given(st.data())
    @settings(max_examples=60, deadline=None)
    def test_damage_anywhere_gives_a_picture_or_one_clear_error(self, tmp_path_factory, data):
        kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]))
        buffer = io.BytesIO()
        quadrants().save(buffer, format=kind)
        content = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, min(len(content), 300) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("damage") / "a"
        path.write_bytes(content)
        picture: LoadedPicture | None = None
        message = ""
        try:
            picture = load_picture(path, (16, 16))
        except InputError as error:
            message = error.message + error.hint
        assert "\n" not in message
        if picture is not None:
            assert picture.size == (16, 16)
            assert np.isfinite(picture.pixels).all()


class TestWriting:
    def test_rounding_is_to_nearest_and_clamped(self):
        values = np.array([-0.5, 0, 0.4999 / 255, 0.5 / 255, 1.4 / 255, 254.49 / 255, 1, 7], dtype=np.float32)
        image = to_image(np.broadcast_to(values, (3, 1, 8)))
        assert image.mode == "RGB"
        assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 0, 1, 1, 254, 255, 255]

    @given(st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3))
    @settings(deadline=None)
    def test_rounding_is_that_of_save_image(self, values):
        torch = pytest.importorskip("torch")
        tensor = torch.tensor(values, dtype=torch.float32).reshape(3, 1, 1)
        expected = tensor.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8)  # torchvision.utils.save_image
        np.testing.assert_array_equal(np.asarray(to_image(tensor)).reshape(3), expected.reshape(3).numpy())

    @pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3), (1, 3, 4, 4), (3, 0, 4)])
    def test_another_shape_is_a_programming_error(self, shape):
        with pytest.raises(ValueError, match=r"\(3, H, W\)"):
            to_image(np.zeros(shape, dtype=np.float32))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_nan_is_refused(self, value):
        array = np.zeros((3, 2, 2), dtype=np.float32)
        array[1, 0, 1] = value
        with pytest.raises(NumericsError, match="1 of 12 values"):
            to_image(array)

    def test_a_png_holds_pixels_alone_and_is_the_same_each_time(self, tmp_path):
        image = quadrants()
        image.info.update(icc_profile=b"x", dpi=(72, 72), comment="secret")
        first = save_png(image, tmp_path / "a.png")
        second = save_png(quadrants(), tmp_path / "b.png")
        assert first == second == sha256_of_file(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as read:
            assert read.info == {}
        assert image.info["comment"] == "secret"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]

    def test_a_place_that_cannot_be_written(self, tmp_path):
        with pytest.raises(InputError, match="cannot write"):
            save_png(quadrants(), tmp_path / "no" / "a.png")
        (tmp_path / "d.png").mkdir()
        with pytest.raises(InputError, match="cannot write"):
            save_png(quadrants(), tmp_path / "d.png")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["d.png"]
