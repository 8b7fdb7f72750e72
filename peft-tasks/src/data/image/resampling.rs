//! Making pictures larger and smaller, as Pillow does.

use std::str::FromStr;

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use peft_core::{PeftError, Result};

use super::geometry::Rectangle;
use super::mask::Mask;
use super::picture::Picture;

/// A filter, by Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resampling {
    /// The pixel at the place.
    Nearest,
    /// Three lobes of a windowed sinc.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// A cubic with a = −0.5.
    Bicubic,
    /// The mean of a box.
    Box,
    /// A Hamming window.
    Hamming,
}

impl Resampling {
    /// The filter that `resample` of a `preprocessor_config.json` numbers, as `PIL.Image.Resampling` does.
    pub fn from_number(number: u64) -> Option<Self> {
        let filters = [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];
        filters.get(usize::try_from(number).ok()?).copied()
    }

    fn filter(self) -> Option<FilterType> {
        match self {
            Self::Nearest => None,
            Self::Lanczos => Some(FilterType::Lanczos3),
            Self::Bilinear => Some(FilterType::Bilinear),
            Self::Bicubic => Some(FilterType::CatmullRom),
            Self::Box => Some(FilterType::Box),
            Self::Hamming => Some(FilterType::Hamming),
        }
    }
}

impl FromStr for Resampling {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "nearest" => Ok(Self::Nearest),
            "lanczos" => Ok(Self::Lanczos),
            "bilinear" => Ok(Self::Bilinear),
            "bicubic" => Ok(Self::Bicubic),
            "box" => Ok(Self::Box),
            "hamming" => Ok(Self::Hamming),
            _ => {
                let known = "nearest, lanczos, bilinear, bicubic, box or hamming";
                Err(PeftError::config("resample", format!("is `{name}`, expected {known}, or their numbers in Pillow")))
            }
        }
    }
}

impl Picture {
    /// A part of the picture in another size. Filters widen as a picture shrinks, and numbers are rounded to 8 bits after
    /// either direction, as in Pillow.
    ///
    /// # Errors
    /// If a size is 0 or the part is not inside the picture.
    pub fn resized(&self, part: Rectangle, width: u32, height: u32, filter: Resampling) -> Result<Self> {
        check(part, self.width, self.height, width, height)?;
        if part.is_whole(self.width, self.height) && (width, height) == (self.width, self.height) {
            return Ok(self.clone());
        }
        let Some(kernel) = filter.filter() else {
            let rgb = nearest(part, width, height, |row, column| self.pixel(row, column)).flatten().collect();
            return Ok(Self { width, height, rgb });
        };
        let failed =
            |error: &dyn std::fmt::Display| PeftError::Invalid(format!("a picture cannot be resized: {error}"));
        let source =
            ImageRef::new(self.width, self.height, &self.rgb, PixelType::U8x3).map_err(|error| failed(&error))?;
        let mut target = Image::new(width, height, PixelType::U8x3);
        let Rectangle { left, top, width: across, height: down } = part;
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(kernel))
            .crop(left.into(), top.into(), across.into(), down.into())
            .use_alpha(false);
        Resizer::new().resize(&source, &mut target, &options).map_err(|error| failed(&error))?;
        Ok(Self { width, height, rgb: target.into_vec() })
    }
}

impl Mask {
    /// A part of the mask in another size. No class may come of two others, so that the nearest pixel counts.
    ///
    /// # Errors
    /// As for [`Picture::resized`].
    pub fn resized(&self, part: Rectangle, width: u32, height: u32) -> Result<Self> {
        check(part, self.width, self.height, width, height)?;
        let at = |row: u32, column: u32| self.classes[row as usize * self.width as usize + column as usize];
        Ok(Self { width, height, classes: nearest(part, width, height, at).collect() })
    }
}

fn check(part: Rectangle, width: u32, height: u32, to_width: u32, to_height: u32) -> Result<()> {
    if part.is_within(width, height) && to_width > 0 && to_height > 0 {
        return Ok(());
    }
    let reason = format!("{part:?} of {width} × {height} pixels cannot become {to_width} × {to_height}");
    Err(PeftError::Invalid(reason))
}

/// Pixels at the centres of those of the target, as `Image.resize` of Pillow finds them.
fn nearest<T>(part: Rectangle, width: u32, height: u32, at: impl Fn(u32, u32) -> T) -> impl Iterator<Item = T> {
    let place = |index: u32, from: u32, length: u32, to: u32| {
        let inside = ((f64::from(index) + 0.5) * f64::from(length) / f64::from(to)) as u32;
        from + inside.min(length - 1)
    };
    (0..height).flat_map(move |row| (0..width).map(move |column| (row, column))).map(move |(row, column)| {
        at(place(row, part.top, part.height, height), place(column, part.left, part.width, width))
    })
}
