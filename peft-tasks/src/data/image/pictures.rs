//! Pictures that are decoded while a model learns from others.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peft_core::{PeftError, Result};
use rayon::ThreadPool;

use super::mask::Mask;
use super::picture::Picture;

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
pub struct Pictures(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: Vec<ImageFiles>,
    threads: ThreadPool,
    /// What is being decoded, or has been and waits.
    coming: Mutex<HashMap<usize, Receiver<Result<Decoded>>>>,
}

impl Pictures {
    /// The pictures of these files. None is read yet.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn new(files: Vec<ImageFiles>) -> Result<Self> {
        // Half of the cores: decoding a batch takes a small part of a step, and the step needs the others.
        let threads = std::thread::available_parallelism().map_or(1, |it| it.get().div_ceil(2));
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|at| format!("pictures {at}"))
            .build()
            .map_err(|error| PeftError::Invalid(format!("no threads to decode pictures on: {error}")))?;
        Ok(Self(Arc::new(Shared { files, threads, coming: Mutex::default() })))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.files.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.files.is_empty()
    }

    /// The files of an item.
    pub fn files(&self, item: usize) -> &ImageFiles {
        &self.0.files[item]
    }

    /// Starts to decode items that will be asked for. Those that nobody asked for since the last call are let go.
    pub fn announce(&self, items: &[usize]) {
        let mut coming = self.coming();
        coming.retain(|item, _| items.contains(item));
        items.iter().for_each(|item| self.start(*item, &mut coming));
    }

    /// Decodes items, or waits for those that are on their way.
    ///
    /// # Errors
    /// Names the file of the first that cannot be read.
    pub fn take(&self, items: &[usize]) -> Result<Vec<Decoded>> {
        let receivers: Vec<Receiver<Result<Decoded>>> = {
            let mut coming = self.coming();
            items.iter().for_each(|item| self.start(*item, &mut coming));
            // An item may be asked for twice in a batch.
            items.iter().map(|item| coming.remove(item).unwrap_or_else(|| self.decode(*item))).collect()
        };
        let lost = || PeftError::Invalid("a thread that decodes pictures has ended".to_owned());
        receivers.into_iter().map(|it| it.recv().map_err(|_| lost())?).collect()
    }

    fn coming(&self) -> MutexGuard<'_, HashMap<usize, Receiver<Result<Decoded>>>> {
        self.0.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self, item: usize, coming: &mut HashMap<usize, Receiver<Result<Decoded>>>) {
        coming.entry(item).or_insert_with(|| self.decode(item));
    }

    fn decode(&self, item: usize) -> Receiver<Result<Decoded>> {
        let (sender, receiver) = sync_channel(1);
        let files = self.0.files[item].clone();
        // Nobody listens any more to what was let go.
        self.0.threads.spawn(move || drop(sender.send(files.decode())));
        receiver
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
        let pictures = Pictures::new(files).unwrap();
        let colours =
            |items: &[usize]| -> Vec<u8> { pictures.take(items).unwrap().iter().map(|it| it.picture.rgb[0]).collect() };
        pictures.announce(&[7, 3, 19]);
        assert_eq!(colours(&[19, 3, 0, 7, 3]), [19, 3, 0, 7, 3]);
        pictures.announce(&[1, 2]);
        pictures.announce(&[2]);
        assert_eq!(pictures.coming().len(), 1, "what nobody asks for is not kept");
        assert_eq!(colours(&[2, 1]), [2, 1]);
        assert!(pictures.coming().is_empty());
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
        let pictures = Pictures::new(vec![files]).unwrap();
        pictures.announce(&[0]);
        assert!(pictures.take(&[0]).unwrap_err().to_string().contains("mask.png"));
    }
}
