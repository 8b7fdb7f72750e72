//! Making pictures larger and smaller, number for number as Pillow does.
//!
//! Either direction is a sum of pixels with weights of 22 bits, rounded to 8 bits; the horizontal one comes first. Libraries
//! that follow Pillow's filters round otherwise, so that every sixth number differs by one.
//!
//! Source: `src/libImaging/Resample.c` and `Geometry.c` of Pillow 13.

use std::f64::consts::PI;
use std::str::FromStr;

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

    /// How far from its middle the filter reaches.
    fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        match self {
            Self::Nearest | Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Bilinear if x.abs() < 1.0 => 1.0 - x.abs(),
            Self::Hamming if x == 0.0 => 1.0,
            Self::Hamming if x.abs() < 1.0 => sinc(x.abs()) * (0.54 + 0.46 * (x.abs() * PI).cos()),
            Self::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                match x {
                    _ if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
                    _ if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
                    _ => 0.0,
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
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
    /// A part of the picture in another size.
    ///
    /// # Errors
    /// If a size is 0 or the part is not inside the picture.
    pub fn resized(&self, part: Rectangle, width: u32, height: u32, filter: Resampling) -> Result<Self> {
        check(part, self.width, self.height, width, height)?;
        let part = self.cut(part);
        if filter == Resampling::Nearest {
            let [columns, rows] = [nearest(part.width, width), nearest(part.height, height)];
            let rgb = rows.iter().flat_map(|row| columns.iter().flat_map(|it| part.pixel(*row, *it))).collect();
            return Ok(Self { width, height, rgb });
        }
        let wide = if part.width == width { part } else { part.across(&Taps::new(part.width, width, filter)) };
        Ok(if wide.height == height { wide } else { wide.down(&Taps::new(wide.height, height, filter)) })
    }

    fn cut(&self, part: Rectangle) -> Self {
        let Rectangle { left, top, width, height } = part;
        let row = |row: u32| {
            let from = (row as usize * self.width as usize + left as usize) * 3;
            &self.rgb[from..from + width as usize * 3]
        };
        Self { width, height, rgb: (top..top + height).flat_map(row).copied().collect() }
    }

    fn across(&self, taps: &Taps) -> Self {
        let mut rgb = Vec::with_capacity(taps.len() * self.height as usize * 3);
        for row in self.rgb.chunks_exact(self.width as usize * 3) {
            for (from, weights) in taps.each() {
                let mut sums = [HALF; 3];
                for (pixel, weight) in row[from * 3..].chunks_exact(3).zip(weights) {
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*value) * weight;
                    }
                }
                rgb.extend(sums.map(narrow));
            }
        }
        Self { width: taps.len() as u32, height: self.height, rgb }
    }

    fn down(&self, taps: &Taps) -> Self {
        let line = self.width as usize * 3;
        let mut rgb = Vec::with_capacity(taps.len() * line);
        let mut sums = vec![0; line];
        for (from, weights) in taps.each() {
            sums.fill(HALF);
            for (row, weight) in self.rgb[from * line..].chunks_exact(line).zip(weights) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(*value) * weight;
                }
            }
            rgb.extend(sums.iter().map(|it| narrow(*it)));
        }
        Self { width: self.width, height: taps.len() as u32, rgb }
    }
}

impl Mask {
    /// A part of the mask in another size. No class may come of two others, so that the nearest pixel counts.
    ///
    /// # Errors
    /// As for [`Picture::resized`].
    pub fn resized(&self, part: Rectangle, width: u32, height: u32) -> Result<Self> {
        check(part, self.width, self.height, width, height)?;
        let [columns, rows] = [nearest(part.width, width), nearest(part.height, height)];
        let at = |row: &u32, column: &u32| {
            self.classes[(part.top + row) as usize * self.width as usize + (part.left + column) as usize]
        };
        let classes = rows.iter().flat_map(|row| columns.iter().map(move |column| (row, column)));
        Ok(Self { width, height, classes: classes.map(|(row, column)| at(row, column)).collect() })
    }
}

fn check(part: Rectangle, width: u32, height: u32, to_width: u32, to_height: u32) -> Result<()> {
    if part.is_within(width, height) && to_width > 0 && to_height > 0 {
        return Ok(());
    }
    let reason = format!("{part:?} of {width} × {height} pixels cannot become {to_width} × {to_height}");
    Err(PeftError::Invalid(reason))
}

/// The places of the pixels nearest to those of another size. Pillow adds the step up, and a sum that is a bit too small is
/// another pixel.
fn nearest(from: u32, to: u32) -> Vec<u32> {
    let step = f64::from(from) / f64::from(to);
    let mut place = step * 0.5;
    let mut places = Vec::with_capacity(to as usize);
    for _ in 0..to {
        places.push((place as u32).min(from - 1));
        place += step;
    }
    places
}

/// Bits of a weight behind the point.
const BITS: u32 = 22;
/// What rounds a sum.
const HALF: i32 = 1 << (BITS - 1);

fn narrow(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// What each pixel of a line is made of.
struct Taps {
    /// First pixel of the line before, and where the weights end.
    places: Vec<(usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(from: u32, to: u32, filter: Resampling) -> Self {
        let scale = f64::from(from) / f64::from(to);
        // A filter widens as a picture shrinks.
        let spread = scale.max(1.0);
        let support = filter.support() * spread;
        let mut taps = Self { places: Vec::with_capacity(to as usize), weights: Vec::new() };
        for at in 0..to {
            let center = (f64::from(at) + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0);
            let last = ((center + support + 0.5) as i64).min(i64::from(from));
            let weight = |it: i64| filter.weight((it as f64 - center + 0.5) * (1.0 / spread));
            let weights: Vec<f64> = (first..last).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            taps.weights.extend(weights.iter().map(|it| {
                let scaled = if sum == 0.0 { *it } else { it / sum } * f64::from(1 << BITS);
                (scaled + if scaled < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
            taps.places.push((first as usize, taps.weights.len()));
        }
        taps
    }

    fn len(&self) -> usize {
        self.places.len()
    }

    fn each(&self) -> impl Iterator<Item = (usize, &[i32])> {
        let mut start = 0;
        self.places.iter().map(move |(from, end)| {
            let weights = &self.weights[start..*end];
            start = *end;
            (*from, weights)
        })
    }
}
