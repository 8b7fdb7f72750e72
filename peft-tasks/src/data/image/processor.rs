//! From a picture to the numbers that a model reads, as a `preprocessor_config.json` says.

use std::path::{Path, PathBuf};

use peft_core::files::plain::read_text;
use peft_core::{PeftError, Result, is_off};
use serde_json::{Map, Value};

use super::defaults::Defaults;
use super::geometry::Rectangle;
use super::mask::Mask;
use super::picture::Picture;
use super::resampling::Resampling;

/// Name of the file.
pub const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// What transformers 5 writes for models that read several kinds of things.
const PROCESSOR_FILE: &str = "processor_config.json";

/// The longest side of a picture for a model: beyond it a configuration is damaged.
const MOST_PIXELS: u64 = 1 << 14;

/// Switches that change numbers and are not known here.
const MUST_BE_OFF: [&str; 6] =
    ["do_flip_channel_order", "do_thumbnail", "do_align_long_axis", "do_pad", "crop_pct", "size_divisor"];

/// How pictures become what a model reads: resized, cropped, scaled and normalised.
///
/// Source: `PilBackend` in `image_processing_backends.py` of transformers 5.23, which rounds to 8 bits after resizing.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    path: PathBuf,
    resize: Option<(Size, Resampling)>,
    /// Height and width.
    center_crop: Option<[u32; 2]>,
    /// What the 256 values of each channel become.
    values: Vec<[f32; 3]>,
    /// Whether class 0 is no class and all others count from 1.
    reduces_labels: bool,
}

/// What size a picture becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Exactly { height: u32, width: u32 },
    ShortestEdge { shortest: u32, longest: Option<u32> },
    Within { height: u32, width: u32 },
}

impl ImageProcessor {
    /// Reads the processor of a base model's folder.
    ///
    /// # Errors
    /// If there is none, it is of a kind that is not known, or says what is not done here.
    pub fn load(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join(PREPROCESSOR_FILE);
        if path.is_file() {
            return Self::parse(&path, &read_text(&path)?);
        }
        let path = folder.join(PROCESSOR_FILE);
        if !path.is_file() {
            let reason = format!("it has no `{PREPROCESSOR_FILE}`, which says how pictures are read; copy the model's");
            return Err(PeftError::bad_file(folder, reason));
        }
        let all: Map<String, Value> =
            serde_json::from_str(&read_text(&path)?).map_err(|error| PeftError::bad_file(&path, error))?;
        match all.get("image_processor") {
            Some(Value::Object(fields)) => Self::from_fields(&path, fields),
            _ => Err(PeftError::bad_file(&path, "it has no `image_processor`")),
        }
    }

    /// The same from text; `path` names errors.
    ///
    /// # Errors
    /// As [`ImageProcessor::load`].
    pub fn parse(path: impl AsRef<Path>, text: &str) -> Result<Self> {
        let path = path.as_ref();
        let fields: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| PeftError::bad_file(path, error))?;
        Self::from_fields(path, &fields)
    }

    fn from_fields(path: &Path, fields: &Map<String, Value>) -> Result<Self> {
        Fields::new(path, fields)?.processor()
    }

    /// The file that says all this.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What a model reads of a picture: height, width, and `[3, height, width]`.
    ///
    /// # Errors
    /// If the picture would have no pixel.
    pub fn pixels(&self, picture: &Picture) -> Result<([usize; 2], Vec<f32>)> {
        self.pixels_of(picture, Rectangle::whole(picture.width, picture.height), None)
    }

    /// The same of a part of a picture, in the given height and width instead of those of the configuration.
    pub(crate) fn pixels_of(
        &self,
        picture: &Picture,
        part: Rectangle,
        size: Option<[u32; 2]>,
    ) -> Result<([usize; 2], Vec<f32>)> {
        let [height, width] = match size {
            Some(size) => size,
            None => self.resized([part.height, part.width]),
        };
        let filter = self.resize.map_or(Resampling::Bilinear, |it| it.1);
        let resized = picture.resized(part, width, height, filter)?;
        let crop = if size.is_none() { self.center_crop } else { None };
        let [rows, columns] = crop.unwrap_or([height, width]).map(|it| it as usize);
        let mut pixels = vec![0.0; 3 * rows * columns];
        // Beyond the edge a crop is filled with black pixels.
        let [top, left] = [offset(height, rows), offset(width, columns)];
        for row in 0..rows {
            for column in 0..columns {
                let inside = |at: i64, of: u32| u32::try_from(at).ok().filter(|it| *it < of);
                let place = inside(row as i64 + top, height).zip(inside(column as i64 + left, width));
                let pixel = place.map_or([0; 3], |(row, column)| resized.pixel(row, column));
                for (channel, value) in pixel.into_iter().enumerate() {
                    pixels[(channel * rows + row) * columns + column] = self.values[usize::from(value)][channel];
                }
            }
        }
        Ok(([rows, columns], pixels))
    }

    /// The classes of the pixels that a model reads, in the size that [`pixels`](Self::pixels) gives.
    ///
    /// # Errors
    /// If the mask would have no pixel.
    pub fn classes(&self, mask: &Mask) -> Result<Mask> {
        self.classes_of(mask, Rectangle::whole(mask.width, mask.height), None)
    }

    pub(crate) fn classes_of(&self, mask: &Mask, part: Rectangle, size: Option<[u32; 2]>) -> Result<Mask> {
        let [height, width] = match size {
            Some(size) => size,
            None => self.resized([part.height, part.width]),
        };
        let mut resized = mask.resized(part, width, height)?;
        if self.reduces_labels {
            // `reduce_label` of the reference: 255 is what is not learned.
            resized.classes.iter_mut().for_each(|it| *it = if *it == 0 || *it == 255 { 255 } else { *it - 1 });
        }
        let Some([rows, columns]) = self.center_crop.filter(|_| size.is_none()) else { return Ok(resized) };
        let [top, left] = [offset(height, rows as usize), offset(width, columns as usize)];
        let at = |row: i64, column: i64| {
            let inside = (0..i64::from(height)).contains(&row) && (0..i64::from(width)).contains(&column);
            if inside { resized.classes[(row * i64::from(width) + column) as usize] } else { 0 }
        };
        let places = (0..i64::from(rows)).flat_map(|row| (0..i64::from(columns)).map(move |column| (row, column)));
        let classes = places.map(|(row, column)| at(row + top, column + left)).collect();
        Ok(Mask { width: columns, height: rows, classes })
    }

    /// Height and width that a picture becomes before it is cropped.
    fn resized(&self, [height, width]: [u32; 2]) -> [u32; 2] {
        match self.resize {
            None => [height, width],
            Some((size, _)) => size.of([height, width]),
        }
    }

    /// Height and width of what a model reads, if they are the same for all pictures.
    pub fn fixed_size(&self) -> Option<[u32; 2]> {
        match (self.center_crop, self.resize) {
            (Some(crop), _) => Some(crop),
            (None, Some((Size::Exactly { height, width }, _))) => Some([height, width]),
            _ => None,
        }
    }
}

/// Where a crop in the middle starts: below 0 if it is larger than the picture.
fn offset(length: u32, crop: usize) -> i64 {
    (i64::from(length) - crop as i64).div_euclid(2)
}

impl Size {
    fn of(self, [height, width]: [u32; 2]) -> [u32; 2] {
        let (h, w) = (f64::from(height), f64::from(width));
        let whole = |it: f64| (it as u32).max(1);
        match self {
            Self::Exactly { height, width } => [height, width],
            // `get_resize_output_image_size`
            Self::ShortestEdge { shortest, longest: None } => {
                let (short, long) = (height.min(width), height.max(width));
                let other = whole((f64::from(shortest) * f64::from(long)) / f64::from(short));
                if width <= height { [other, shortest] } else { [shortest, other] }
            }
            // `get_size_with_aspect_ratio`
            Self::ShortestEdge { shortest, longest: Some(longest) } => {
                let mut size = f64::from(shortest);
                let mut exact = size;
                if h.max(w) / h.min(w) * size > f64::from(longest) {
                    exact = f64::from(longest) * h.min(w) / h.max(w);
                    size = exact.round_ties_even();
                }
                if (h <= w && h == size) || (w <= h && w == size) {
                    [height, width]
                } else if w < h {
                    [whole(exact * h / w), whole(size)]
                } else {
                    [whole(size), whole(exact * w / h)]
                }
            }
            // `get_image_size_for_max_height_width`
            Self::Within { height: most_high, width: most_wide } => {
                let scale = (f64::from(most_high) / h).min(f64::from(most_wide) / w);
                [whole(h * scale), whole(w * scale)]
            }
        }
    }
}

/// The fields of a configuration, with the defaults of its class.
struct Fields<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
    defaults: Option<&'static Defaults>,
}

impl<'a> Fields<'a> {
    fn new(path: &'a Path, fields: &'a Map<String, Value>) -> Result<Self> {
        let named = ["image_processor_type", "feature_extractor_type"].iter().find_map(|it| fields.get(*it)?.as_str());
        let fields = Self { path, fields, defaults: named.and_then(Defaults::of_class) };
        for field in MUST_BE_OFF {
            if let Some(value) = fields.fields.get(field).filter(|it| !is_off(it)) {
                return Err(fields.bad(format!("`{field}` is {value}, which is not done here")));
            }
        }
        Ok(fields)
    }

    fn bad(&self, reason: String) -> PeftError {
        PeftError::bad_file(self.path, reason)
    }

    /// What the file says, else what its class starts from.
    fn value(&self, field: &str) -> Result<Value> {
        let old = if field == "do_reduce_labels" { self.fields.get("reduce_labels") } else { None };
        if let Some(value) = self.fields.get(field).or(old).filter(|it| !it.is_null()) {
            return Ok(value.clone());
        }
        match self.defaults {
            Some(defaults) => Ok(defaults.value(field)),
            // Nobody switches these on without saying so.
            None if ["do_center_crop", "do_reduce_labels"].contains(&field) => Ok(Value::Null),
            None => Err(self.bad(format!(
                "it does not say `{field}`, and its `image_processor_type` is none whose defaults are known: {}",
                Defaults::classes()
            ))),
        }
    }

    fn is_on(&self, field: &str) -> Result<bool> {
        match self.value(field)? {
            Value::Bool(on) => Ok(on),
            Value::Null => Ok(false),
            other => Err(self.bad(format!("`{field}` is {other}, expected true or false"))),
        }
    }

    fn processor(&self) -> Result<ImageProcessor> {
        let resize = match self.is_on("do_resize")? {
            true => Some((self.size()?, self.resampling()?)),
            false => None,
        };
        let center_crop = match self.is_on("do_center_crop")? {
            true => Some(self.crop()?),
            false => None,
        };
        let scale = if self.is_on("do_rescale")? { Some(self.number("rescale_factor")?) } else { None };
        let normal = match self.is_on("do_normalize")? {
            true => Some((self.channels("image_mean")?, self.channels("image_std")?)),
            false => None,
        };
        if normal.is_some_and(|(_, std)| std.contains(&0.0)) {
            return Err(self.bad("`image_std` has a 0, by which nothing can be divided".to_owned()));
        }
        // The reference scales in double precision, rounds, and normalises in single precision.
        let value = |of: u16, channel: usize| {
            let scaled = scale.map_or(f32::from(of), |it| (f64::from(of) * it) as f32);
            normal.map_or(scaled, |(mean, std)| (scaled - mean[channel] as f32) / std[channel] as f32)
        };
        Ok(ImageProcessor {
            path: self.path.to_path_buf(),
            resize,
            center_crop,
            values: (0..256).map(|of| [0, 1, 2].map(|channel| value(of, channel))).collect(),
            reduces_labels: self.is_on("do_reduce_labels")?,
        })
    }

    fn side(&self, field: &str, value: &Value) -> Result<u32> {
        match value.as_u64().or_else(|| value.as_f64().filter(|it| it.fract() == 0.0 && *it > 0.0).map(|it| it as u64))
        {
            Some(side) if (1..=MOST_PIXELS).contains(&side) => Ok(side as u32),
            _ => Err(self.bad(format!("`{field}` has a side of {value}, expected 1 to {MOST_PIXELS} pixels"))),
        }
    }

    fn size(&self) -> Result<Size> {
        let value = self.value("size")?;
        let side = |value: &Value| self.side("size", value);
        let of =
            |fields: &Map<String, Value>, name: &str| fields.get(name).filter(|it| !it.is_null()).map(side).transpose();
        match &value {
            Value::Object(fields) => {
                let [height, width] = [of(fields, "height")?, of(fields, "width")?];
                let [shortest, longest] = [of(fields, "shortest_edge")?, of(fields, "longest_edge")?];
                let [most_high, most_wide] = [of(fields, "max_height")?, of(fields, "max_width")?];
                match (height.zip(width), shortest, most_high.zip(most_wide)) {
                    (Some((height, width)), _, _) => Ok(Size::Exactly { height, width }),
                    (None, Some(shortest), _) => Ok(Size::ShortestEdge { shortest, longest }),
                    (None, None, Some((height, width))) => Ok(Size::Within { height, width }),
                    _ => Err(self.bad(format!("`size` is {value}, which is not known; give `height` and `width`"))),
                }
            }
            Value::Array(sides) if sides.len() == 2 => {
                Ok(Size::Exactly { height: side(&sides[0])?, width: side(&sides[1])? })
            }
            // What feature extractors of earlier versions wrote.
            single => match self.defaults.is_none_or(|it| it.is_square) {
                true => side(single).map(|it| Size::Exactly { height: it, width: it }),
                false => Ok(Size::ShortestEdge { shortest: side(single)?, longest: None }),
            },
        }
    }

    fn crop(&self) -> Result<[u32; 2]> {
        let value = self.value("crop_size")?;
        let side = |value: &Value| self.side("crop_size", value);
        match &value {
            Value::Object(fields) => match (fields.get("height"), fields.get("width")) {
                (Some(height), Some(width)) => Ok([side(height)?, side(width)?]),
                _ => Err(self.bad(format!("`crop_size` is {value}, expected `height` and `width`"))),
            },
            Value::Array(sides) if sides.len() == 2 => Ok([side(&sides[0])?, side(&sides[1])?]),
            single => side(single).map(|it| [it; 2]),
        }
    }

    fn resampling(&self) -> Result<Resampling> {
        let value = self.value("resample")?;
        let found = match &value {
            Value::String(name) => Some(name.parse().map_err(|error: PeftError| error.in_file(self.path))?),
            other => other.as_u64().and_then(Resampling::from_number),
        };
        found
            .ok_or_else(|| self.bad(format!("`resample` is {value}, expected 0 to 5, the numbers of Pillow's filters")))
    }

    fn number(&self, field: &str) -> Result<f64> {
        let value = self.value(field)?;
        let number = value.as_f64().filter(|it| it.is_finite());
        number.ok_or_else(|| self.bad(format!("`{field}` is {value}, expected a number")))
    }

    fn channels(&self, field: &str) -> Result<[f64; 3]> {
        let value = self.value(field)?;
        let numbers: Option<Vec<f64>> = match &value {
            Value::Array(items) => items.iter().map(Value::as_f64).collect(),
            single => single.as_f64().map(|it| vec![it; 3]),
        };
        let wanted = || self.bad(format!("`{field}` is {value}, expected a number, or one for red, green and blue"));
        let numbers = numbers.filter(|it| it.iter().all(|it| it.is_finite())).ok_or_else(wanted)?;
        match numbers[..] {
            [all] => Ok([all; 3]),
            [red, green, blue] => Ok([red, green, blue]),
            _ => Err(wanted()),
        }
    }
}
