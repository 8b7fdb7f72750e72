//! Pictures that are decoded while a model learns from others.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;

use peft_core::{PeftError, Result};

use super::mask::Mask;
use super::picture::Picture;
use crate::data::ahead::Ahead;

/// Decoded pictures that wait to be learned: two batches of 128. Large pictures come in small batches.
const MOST_PICTURES: usize = 256;

/// The files of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFiles {
    /// The picture.
    pub image: PathBuf,
    /// The classes of its pixels.
    pub mask: Option<PathBuf>,
}

/// A decoded item.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The picture.
    pub picture: Picture,
    /// The classes of its pixels.
    pub mask: Option<Mask>,
}

/// The pictures of a data set, which are decoded when they are needed, or shortly before, on threads of their own.
#[derive(Debug, Clone)]
pub struct Pictures {
    files: Arc<[ImageFiles]>,
    ahead: Arc<Ahead<Decoded>>,
}

impl Pictures {
    /// The pictures of these files. None is read yet.
    pub fn new(files: Vec<ImageFiles>) -> Self {
        // Half of the cores: decoding a batch takes a small part of a step, and the step needs the others.
        let threads = available_parallelism().map_or(1, |it| it.get().div_ceil(2));
        let files: Arc<[ImageFiles]> = files.into();
        let read = files.clone();
        Self { files, ahead: Arc::new(Ahead::new(threads, MOST_PICTURES, move |item| read[item].decode())) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The files of an item.
    pub fn files(&self, item: usize) -> &ImageFiles {
        &self.files[item]
    }

    /// Starts to decode items that will be asked for. Of what nobody asks for, the last two announcements are kept: a trainer
    /// announces a step before it takes the one before.
    pub fn announce(&self, items: &[usize]) {
        self.ahead.announce(items);
    }

    /// Decodes items, or waits for those that are on their way.
    ///
    /// # Errors
    /// Names the file of the first that cannot be read.
    pub fn take(&self, items: &[usize]) -> Result<Vec<Decoded>> {
        self.ahead.take_all(items)
    }
}

impl ImageFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the one that cannot be read, or a mask of another size than its picture.
    pub fn decode(&self) -> Result<Decoded> {
        let picture = Picture::read(&self.image)?;
        let mask = self.mask.as_ref().map(Mask::read).transpose()?;
        if let (Some(mask), Some(path)) = (&mask, &self.mask)
            && (mask.width, mask.height) != (picture.width, picture.height)
        {
            let reason = format!(
                "it has {} × {} pixels, but {} has {} × {}",
                mask.width,
                mask.height,
                self.image.display(),
                picture.width,
                picture.height
            );
            return Err(PeftError::bad_file(path, reason));
        }
        Ok(Decoded { picture, mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &std::path::Path, colour: u8) -> ImageFiles {
        let image = folder.join(format!("{colour}.png"));
        image::RgbImage::from_pixel(4, 4, image::Rgb([colour; 3])).save(&image).unwrap();
        ImageFiles { image, mask: None }
    }

    #[test]
    fn items_come_in_the_order_in_which_they_are_asked_for_announced_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<ImageFiles> = (0..20).map(|it| written(folder.path(), it)).collect();
        let pictures = Pictures::new(files);
        let colours =
            |items: &[usize]| -> Vec<u8> { pictures.take(items).unwrap().iter().map(|it| it.picture.rgb[0]).collect() };
        pictures.announce(&[7, 3, 19]);
        assert_eq!(colours(&[19, 3, 0, 7, 3]), [19, 3, 0, 7, 3]);
    }

    #[test]
    fn a_step_is_decoded_while_the_one_before_is_learned() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<ImageFiles> = (0..3).map(|it| written(folder.path(), it)).collect();
        let pictures = Pictures::new(files.clone());
        // The trainer's order: a step is announced before the one before it is taken.
        pictures.announce(&[0]);
        pictures.ahead.finish();
        pictures.announce(&[1]);
        pictures.ahead.finish();
        // What is decoded already needs no file any more.
        files.iter().for_each(|it| std::fs::remove_file(&it.image).unwrap());
        assert_eq!(pictures.take(&[0]).unwrap()[0].picture.rgb[0], 0);
        pictures.announce(&[2]);
        assert_eq!(pictures.take(&[1]).unwrap()[0].picture.rgb[0], 1);
        assert!(pictures.take(&[2]).unwrap_err().to_string().contains("2.png"));
    }

    #[test]
    fn a_damaged_file_and_a_mask_of_another_size_are_errors_with_the_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = written(folder.path(), 5);
        let mask = folder.path().join("mask.png");
        image::GrayImage::new(4, 5).save(&mask).unwrap();
        files.mask = Some(mask.clone());
        let error = files.decode().unwrap_err().to_string();
        assert!(error.contains("mask.png") && error.contains("4 × 5") && error.contains("5.png"), "{error}");
        std::fs::write(&mask, b"nonsense").unwrap();
        let pictures = Pictures::new(vec![files]);
        pictures.announce(&[0]);
        assert!(pictures.take(&[0]).unwrap_err().to_string().contains("mask.png"));
    }
}
