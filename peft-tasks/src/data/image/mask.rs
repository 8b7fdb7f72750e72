//! The classes of pixels, as a picture file holds them.

use std::path::Path;

use image::{DynamicImage, ImageFormat};
use peft_core::{PeftError, Result};
use png::{BitDepth, ColorType, Decoder, Transformations};

use super::decoding::{MOST_BYTES, MOST_PIXELS_A_SIDE, decode, open};

/// A class for every pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `[height, width]`
    pub classes: Vec<u16>,
}

impl Mask {
    /// Reads a PNG whose pixels are classes: grey values of up to 16 bits, or places in a palette, whose colours do not
    /// count, as in the masks of Pascal VOC. Other formats are read if they are grey.
    ///
    /// # Errors
    /// Names the file if it is no picture, damaged, or has colours.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut source = open(path)?;
        let start = std::io::BufRead::fill_buf(&mut source).map_err(PeftError::io("read", path))?;
        if image::guess_format(start).is_ok_and(|it| it == ImageFormat::Png) {
            return from_png(source, path);
        }
        let image = decode(path)?;
        let (width, height) = (image.width(), image.height());
        let classes = match image {
            DynamicImage::ImageLuma8(pixels) => pixels.into_raw().into_iter().map(u16::from).collect(),
            DynamicImage::ImageLuma16(pixels) => pixels.into_raw(),
            _ => return Err(coloured(path)),
        };
        Ok(Self { width, height, classes })
    }
}

fn coloured(path: &Path) -> PeftError {
    let reason = "a mask has one number for each pixel, its class, and this picture has colours; write it as grey PNG \
                  or as PNG with a palette";
    PeftError::bad_file(path, reason)
}

/// The `image` crate looks palettes up, and the places are lost.
fn from_png(source: impl std::io::BufRead + std::io::Seek, path: &Path) -> Result<Mask> {
    let bad = |error: png::DecodingError| PeftError::bad_file(path, format!("it is no whole picture: {error}"));
    let mut decoder = Decoder::new(source);
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(bad)?;
    let (width, height) = (reader.info().width, reader.info().height);
    if width.max(height) > MOST_PIXELS_A_SIDE {
        let reason = format!("it has {width} × {height} pixels, and a side may have {MOST_PIXELS_A_SIDE}");
        return Err(PeftError::bad_file(path, reason));
    }
    let (color, depth) = reader.output_color_type();
    let step = match color {
        ColorType::Grayscale | ColorType::Indexed => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb | ColorType::Rgba => return Err(coloured(path)),
    };
    let size = reader.output_buffer_size().filter(|it| *it as u64 <= MOST_BYTES);
    let size = size.ok_or_else(|| PeftError::bad_file(path, "the picture is too large"))?;
    let mut bytes = vec![0; size];
    let frame = reader.next_frame(&mut bytes).map_err(bad)?;
    let mut classes = Vec::with_capacity(width as usize * height as usize);
    for row in bytes.chunks_exact(frame.line_size).take(height as usize) {
        classes.extend((0..width as usize).map(|column| value(row, column * step, depth)));
    }
    Ok(Mask { width, height, classes })
}

/// The number at a place of a row whose numbers may be packed, the first in the upper bits.
fn value(row: &[u8], at: usize, depth: BitDepth) -> u16 {
    let packed = |bits: usize| {
        let per_byte = 8 / bits;
        let shift = (per_byte - 1 - at % per_byte) * bits;
        u16::from(row[at / per_byte] >> shift) & ((1 << bits) - 1)
    };
    match depth {
        BitDepth::One => packed(1),
        BitDepth::Two => packed(2),
        BitDepth::Four => packed(4),
        BitDepth::Eight => u16::from(row[at]),
        BitDepth::Sixteen => u16::from_be_bytes([row[at * 2], row[at * 2 + 1]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn written(folder: &Path, color: ColorType, depth: BitDepth, width: u32, data: &[u8]) -> PathBuf {
        let path = folder.join("mask.png");
        let file = std::fs::File::create(&path).unwrap();
        let mut encoder = png::Encoder::new(file, width, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ColorType::Indexed {
            encoder.set_palette([[9u8, 9, 9], [0, 255, 0], [1, 2, 3], [4, 5, 6]].concat());
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        path
    }

    #[test]
    fn places_in_a_palette_and_grey_values_of_any_depth_are_classes() {
        let folder = tempfile::tempdir().unwrap();
        let classes = |color, depth, width, data: &[u8]| {
            Mask::read(written(folder.path(), color, depth, width, data)).unwrap().classes
        };
        assert_eq!(classes(ColorType::Indexed, BitDepth::Two, 5, &[0b00_01_10_11, 0b01_000000]), [0, 1, 2, 3, 1]);
        assert_eq!(classes(ColorType::Indexed, BitDepth::Eight, 3, &[3, 0, 2]), [3, 0, 2]);
        assert_eq!(classes(ColorType::Grayscale, BitDepth::One, 3, &[0b101_00000]), [1, 0, 1]);
        assert_eq!(classes(ColorType::Grayscale, BitDepth::Four, 3, &[0xf1, 0x20]), [15, 1, 2]);
        assert_eq!(classes(ColorType::Grayscale, BitDepth::Sixteen, 2, &[1, 0, 0, 7]), [256, 7]);
        assert_eq!(classes(ColorType::GrayscaleAlpha, BitDepth::Eight, 2, &[5, 255, 6, 0]), [5, 6]);
    }

    #[test]
    fn a_mask_with_colours_or_half_a_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path(), ColorType::Rgb, BitDepth::Eight, 1, &[1, 2, 3]);
        assert!(Mask::read(&path).unwrap_err().to_string().contains("this picture has colours"));
        let path = written(folder.path(), ColorType::Grayscale, BitDepth::Eight, 3, &[3, 0, 2]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..45]).unwrap();
        let error = Mask::read(&path).unwrap_err().to_string();
        assert!(error.contains("mask.png") && error.contains("no whole picture"), "{error}");
    }
}
