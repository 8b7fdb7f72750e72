//! What is changed about a picture at random.

use super::geometry::Rectangle;
use super::picture::Picture;
use crate::data::augmentation::{Augmentation, Augmentations};

/// How many numbers a picture's changes need.
pub(crate) const DRAWS: usize = 8;

/// What was drawn for a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Change {
    /// The part that is seen; `None` for all of it.
    pub(crate) part: Option<Rectangle>,
    pub(crate) is_mirrored: bool,
    /// Factors of brightness, contrast and saturation.
    pub(crate) color: Option<[f32; 3]>,
}

impl Augmentations {
    /// The change that these numbers, each from 0 to 1, mean for a picture of this size.
    pub(crate) fn change(&self, drawn: &[f32; DRAWS], width: u32, height: u32) -> Change {
        Change {
            part: self.has(Augmentation::Crop).then(|| crop(drawn, width, height)),
            is_mirrored: self.has(Augmentation::Flip) && drawn[4] < 0.5,
            color: self.has(Augmentation::Color).then(|| [5, 6, 7].map(|it| 0.75 + 0.5 * drawn[it])),
        }
    }
}

/// torchvision tries up to ten times; one that does not fit is made smaller here, so that each picture takes as many numbers.
fn crop(drawn: &[f32; DRAWS], width: u32, height: u32) -> Rectangle {
    let [area, shape, left, top] = [drawn[0], drawn[1], drawn[2], drawn[3]].map(f64::from);
    let (most_wide, most_high) = (f64::from(width), f64::from(height));
    let area = most_wide * most_high * (0.08 + 0.92 * area);
    let edge = (4.0_f64 / 3.0).ln();
    let ratio = (-edge + 2.0 * edge * shape).exp();
    let (mut wide, mut high) = ((area * ratio).sqrt(), (area / ratio).sqrt());
    let too_much = (wide / most_wide).max(high / most_high).max(1.0);
    (wide, high) = (wide / too_much, high / too_much);
    let side = |it: f64, most: u32| (it.round() as u32).clamp(1, most);
    let (wide, high) = (side(wide, width), side(high, height));
    let from = |at: f64, spare: u32| ((at * f64::from(spare + 1)) as u32).min(spare);
    Rectangle { left: from(left, width - wide), top: from(top, height - high), width: wide, height: high }
}

/// The same picture in other light. Source: `torchvision.transforms.functional` on 8 bits, in the order of brightness,
/// contrast and saturation.
pub(crate) fn recolor(picture: &mut Picture, [brightness, contrast, saturation]: [f32; 3]) {
    let narrow = |it: f32| it.clamp(0.0, 255.0) as u8;
    let mix = |value: u8, with: f32, factor: f32| narrow(f32::from(value) * factor + with * (1.0 - factor));
    let grey = |pixel: &[u8]| 0.2989 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
    picture.rgb.iter_mut().for_each(|it| *it = mix(*it, 0.0, brightness));
    let sum: f64 = picture.rgb.chunks_exact(3).map(|it| f64::from(grey(it).floor())).sum();
    let mean = (sum / (picture.rgb.len() / 3).max(1) as f64) as f32;
    picture.rgb.iter_mut().for_each(|it| *it = mix(*it, mean, contrast));
    for pixel in picture.rgb.chunks_exact_mut(3) {
        let grey = grey(pixel).floor();
        pixel.iter_mut().for_each(|it| *it = mix(*it, grey, saturation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_crop_is_inside_and_of_the_wanted_area_and_shape(
            drawn in prop::array::uniform8(0.0_f32..1.0), width in 1_u32..400, height in 1_u32..400
        ) {
            let part = crop(&drawn, width, height);
            prop_assert!(part.is_within(width, height));
            if width.min(height) > 50 && width < 2 * height && height < 2 * width {
                let share = f64::from(part.width * part.height) / f64::from(width * height);
                prop_assert!(share > 0.07 && share <= 1.0, "{share}");
                let ratio = f64::from(part.width) / f64::from(part.height);
                prop_assert!((0.7..1.4).contains(&ratio), "{ratio}");
            }
        }
    }

    #[test]
    fn factors_of_one_leave_colours_alone_and_others_do_not() {
        let picture = Picture { width: 2, height: 1, rgb: vec![10, 100, 200, 250, 3, 77] };
        let mut same = picture.clone();
        recolor(&mut same, [1.0; 3]);
        assert_eq!(same, picture);
        // Worked by hand: brightness 0.5 halves, contrast 0 is the mean grey, saturation 0 the grey of each pixel.
        let changed = |factors| {
            let mut changed = picture.clone();
            recolor(&mut changed, factors);
            changed.rgb
        };
        assert_eq!(changed([0.5, 1.0, 1.0]), [5, 50, 100, 125, 1, 38]);
        assert_eq!(changed([1.0, 1.0, 0.0]), [84, 84, 84, 85, 85, 85]);
        assert_eq!(changed([1.0, 0.0, 1.0]), [84; 6]);
    }
}
