//! Changes at random that leave a picture what it is, so that a model learns from more than there is.

use std::str::FromStr;

use peft_core::{PeftError, Result};
use serde::{Deserialize, Serialize};

/// One kind of change. What is drawn is uniform unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    /// A part of the picture, of 0.08 to 1 of its area, 3:4 to 4:3 as wide as high, enlarged to what the model reads.
    /// Source: `RandomResizedCrop` of torchvision.
    Crop,
    /// The mirror image, of half of the pictures. Source: `RandomHorizontalFlip` of torchvision.
    Flip,
    /// Brightness, contrast and saturation times 0.75 to 1.25. Source: `ColorJitter` of torchvision, as the reference's
    /// guide on segmentation uses it; the hue stays.
    Color,
}

impl FromStr for Augmentation {
    type Err = PeftError;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "crop" => Ok(Self::Crop),
            "flip" => Ok(Self::Flip),
            "color" => Ok(Self::Color),
            _ => Err(PeftError::config("augment", format!("is `{name}`, expected crop, flip or color"))),
        }
    }
}

/// The changes of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Augmentations(pub Vec<Augmentation>);

impl Augmentations {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this kind is among them.
    pub fn has(&self, kind: Augmentation) -> bool {
        self.0.contains(&kind)
    }
}
