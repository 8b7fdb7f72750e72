//! A picture in memory.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageFormat};
use peft_core::files::checkpoint::write_atomically;
use peft_core::{PeftError, Result};

use super::decoding::{decode, decode_from};

/// A picture of 8 bits a channel: red, green, blue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `[height, width, 3]`
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Reads a PNG, JPEG, WebP, GIF, BMP or TIFF file; of several pictures the first.
    ///
    /// The picture is turned as its EXIF data says, and becomes red, green and blue as by `convert("RGB")` of Pillow:
    /// grey is copied, palettes are looked up, transparency is dropped. Of 16 bits the upper 8 count; Pillow does so with
    /// colours but turns grey values above 255 white, which is not followed.
    ///
    /// # Errors
    /// Names the file if it is no picture, damaged or too large.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        decode(path.as_ref()).map(|it| Self::from_decoded(&it))
    }

    /// The same for a file that is in memory. `path` names errors.
    ///
    /// # Errors
    /// As [`Picture::read`].
    pub fn parse(path: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        decode_from(Cursor::new(bytes), path.as_ref()).map(|it| Self::from_decoded(&it))
    }

    /// Writes a file, in the format that the end of its name says: `.png`, `.jpg`, `.webp`, `.bmp`, `.tiff` or `.gif`.
    ///
    /// # Errors
    /// If the name says none of them, or the disk says no.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let format = ImageFormat::from_path(path).map_err(|_| {
            PeftError::bad_file(path, "the end of its name is none of .png, .jpg, .webp, .bmp, .tiff and .gif")
        })?;
        let mut bytes = Cursor::new(Vec::new());
        image::write_buffer_with_format(
            &mut bytes,
            &self.rgb,
            self.width,
            self.height,
            image::ExtendedColorType::Rgb8,
            format,
        )
        .map_err(|error| PeftError::bad_file(path, error))?;
        write_atomically(path, bytes.get_ref())
    }

    fn from_decoded(image: &DynamicImage) -> Self {
        let (width, height) = (image.width(), image.height());
        let rgb = match image {
            DynamicImage::ImageRgb8(pixels) => pixels.as_raw().clone(),
            DynamicImage::ImageRgba8(pixels) => channels(pixels.as_raw(), [0, 1, 2], 4, |it| *it),
            DynamicImage::ImageLuma8(pixels) => channels(pixels.as_raw(), [0; 3], 1, |it| *it),
            DynamicImage::ImageLumaA8(pixels) => channels(pixels.as_raw(), [0; 3], 2, |it| *it),
            DynamicImage::ImageRgb16(pixels) => channels(pixels.as_raw(), [0, 1, 2], 3, upper),
            DynamicImage::ImageRgba16(pixels) => channels(pixels.as_raw(), [0, 1, 2], 4, upper),
            DynamicImage::ImageLuma16(pixels) => channels(pixels.as_raw(), [0; 3], 1, upper),
            DynamicImage::ImageLumaA16(pixels) => channels(pixels.as_raw(), [0; 3], 2, upper),
            other => other.to_rgb8().into_raw(),
        };
        Self { width, height, rgb }
    }

    /// The pixel in a row and column.
    pub fn pixel(&self, row: u32, column: u32) -> [u8; 3] {
        let at = (row as usize * self.width as usize + column as usize) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }
}

fn upper(value: &u16) -> u8 {
    (value >> 8) as u8
}

fn channels<T>(pixels: &[T], which: [usize; 3], step: usize, narrow: impl Fn(&T) -> u8) -> Vec<u8> {
    pixels.chunks_exact(step).flat_map(|pixel| which.map(|channel| narrow(&pixel[channel]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayAlphaImage, ImageBuffer, ImageFormat, Luma, Rgb, RgbaImage};

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn read(image: DynamicImage) -> Vec<u8> {
        Picture::parse("a.png", &encoded(&image, ImageFormat::Png)).unwrap().rgb
    }

    /// What `convert("RGB")` of Pillow 13 makes of the same pixels.
    #[test]
    fn every_kind_of_pixel_becomes_red_green_and_blue() {
        let rgba = RgbaImage::from_raw(2, 1, vec![10, 20, 30, 0, 1, 2, 3, 128]).unwrap();
        assert_eq!(read(rgba.into()), [10, 20, 30, 1, 2, 3]);
        let grey = GrayAlphaImage::from_raw(2, 1, vec![10, 0, 200, 128]).unwrap();
        assert_eq!(read(grey.into()), [10, 10, 10, 200, 200, 200]);
        let deep = ImageBuffer::<Rgb<u16>, _>::from_raw(1, 1, vec![0x12ff, 0xffff, 0x00ff]).unwrap();
        assert_eq!(read(deep.into()), [0x12, 0xff, 0]);
        let deep = ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![0x8000, 0xffff]).unwrap();
        assert_eq!(read(deep.into()), [0x80, 0x80, 0x80, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_picture_is_turned_as_its_exif_data_says() {
        let upright = image::RgbImage::from_fn(16, 8, |x, _| if x < 8 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) });
        let jpeg = encoded(&upright.into(), ImageFormat::Jpeg);
        // An APP1 segment behind the start marker: one entry of TIFF, orientation 6, to be turned by 90° clockwise.
        let tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let length = ((tiff.len() + 2) as u16).to_be_bytes();
        let turned = [&jpeg[..2], &[0xff, 0xe1], &length, tiff, &jpeg[2..]].concat();
        let picture = Picture::parse("a.jpg", &turned).unwrap();
        assert_eq!((picture.width, picture.height), (8, 16));
        let (top, bottom) = (picture.pixel(1, 4), picture.pixel(14, 4));
        assert!(top[0] > 200 && top[2] < 50 && bottom[2] > 200 && bottom[0] < 50, "{top:?} {bottom:?}");
    }

    #[test]
    fn what_is_no_picture_is_an_error_with_the_name() {
        let whole = encoded(&RgbaImage::new(40, 30).into(), ImageFormat::Png);
        let error = |bytes: &[u8]| Picture::parse("cat.png", bytes).unwrap_err().to_string();
        for bytes in [&whole[..whole.len() / 2], b"<html>not found</html>", &whole[..20]] {
            let error = error(bytes);
            assert!(error.starts_with("cat.png is not usable"), "{error}");
        }
        // A header that promises more pixels than there is memory for.
        let mut huge = whole;
        huge[16..24].copy_from_slice(&[0x7f, 0, 0, 0, 0x7f, 0, 0, 0]);
        assert!(error(&huge).starts_with("cat.png is not usable"), "{}", error(&huge));
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty.png");
        std::fs::write(&empty, b"").unwrap();
        assert!(Picture::read(&empty).unwrap_err().to_string().contains("empty.png"));
        assert!(Picture::read(folder.path()).unwrap_err().to_string().contains("it is no file"));
    }
}
