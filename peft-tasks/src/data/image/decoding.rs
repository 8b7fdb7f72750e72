//! What decoding a picture may cost, whoever made the file.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use peft_core::{PeftError, Result};

/// The longest side of a picture, in pixels: a header may claim anything.
pub(super) const MOST_PIXELS_A_SIDE: u32 = 1 << 16;
/// The most memory that decoding may take, in bytes.
pub(super) const MOST_BYTES: u64 = 1 << 30;

/// A picture file that is one.
///
/// # Errors
/// If it cannot be read, is no file, or is empty.
pub(super) fn open(path: &Path) -> Result<BufReader<File>> {
    let about = std::fs::metadata(path).map_err(PeftError::io("read", path))?;
    if !about.is_file() {
        return Err(PeftError::bad_file(path, "it is no file, so no picture"));
    }
    if about.len() == 0 {
        return Err(PeftError::bad_file(path, "it is empty, so no picture"));
    }
    File::open(path).map(BufReader::new).map_err(PeftError::io("read", path))
}

/// The picture of a file, as it is meant to be looked at: turned as its EXIF data says.
///
/// # Errors
/// Names the file if it is no picture, damaged, of a kind that is not read, or too large.
pub(super) fn decode(path: &Path) -> Result<DynamicImage> {
    decode_from(open(path)?, path)
}

/// The same from any source; `path` names errors.
pub(super) fn decode_from(source: impl BufRead + Seek, path: &Path) -> Result<DynamicImage> {
    let bad = |error: ImageError| PeftError::bad_file(path, reason(&error));
    let mut reader = ImageReader::new(source).with_guessed_format().map_err(PeftError::io("read", path))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MOST_PIXELS_A_SIDE);
    limits.max_image_height = Some(MOST_PIXELS_A_SIDE);
    limits.max_alloc = Some(MOST_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    // A picture whose EXIF data cannot be read is one that stands upright.
    let orientation = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder).map_err(bad)?;
    if image.width() == 0 || image.height() == 0 {
        return Err(PeftError::bad_file(path, "the picture has no pixel"));
    }
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    Ok(image)
}

fn reason(error: &ImageError) -> String {
    match error {
        ImageError::Unsupported(_) => format!("{error}; read are PNG, JPEG, WebP, GIF, BMP and TIFF"),
        ImageError::Limits(_) => {
            format!("{error}: a side may have {MOST_PIXELS_A_SIDE} pixels, and decoding take {} MiB", MOST_BYTES >> 20)
        }
        _ => format!("it is no whole picture: {error}"),
    }
}
