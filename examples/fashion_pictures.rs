//! Fashion-MNIST as pictures in folders, for the guides on pictures.
//!
//! ```text
//! cargo run --release -p peft-examples --example fashion_pictures -- fashion-mnist pictures
//! ```
//!
//! reads the four IDX files of a folder (`train-images-idx3-ubyte`, …), and writes
//!
//! - `pictures/first` and `pictures/second`: five classes each, as `train/<class>/<number>.png` and `test/…`;
//! - `pictures/canvases/first` and `…/second`: canvases of four pictures, `train/images/<number>.png` with their masks
//!   `train/masks/<number>.png`. Class 0 is the ground, and a pixel is of a class where its picture is not black;
//! - `pictures/pairs/first` and `…/second`: canvases with two pictures, `train/<number>.png`, and `train/metadata.jsonl` with
//!   a caption of each: `a bag left of a coat`, `a coat above a bag`.

#![allow(clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, Luma};
use peft::core::{PeftError, Result};
use serde_json::json;

const SIDE: u32 = 28;
const CLASSES: [&str; 10] =
    ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"];
/// Pixels up to this value are ground.
const GROUND: u8 = 24;
/// Pictures on a canvas, in a row and in a column.
const ACROSS: usize = 2;

/// Pictures and their classes.
struct Pictures(Vec<(GrayImage, usize)>);

impl Pictures {
    fn read(folder: &Path, part: &str) -> Result<Self> {
        let read = |name: String, header: usize| -> Result<(PathBuf, Vec<u8>)> {
            let path = folder.join(name);
            let bytes = fs::read(&path).map_err(PeftError::io("read", &path))?;
            match bytes.len() > header {
                true => Ok((path, bytes[header..].to_vec())),
                false => Err(PeftError::bad_file(path, "it is shorter than its header")),
            }
        };
        let (path, pixels) = read(format!("{part}-images-idx3-ubyte"), 16)?;
        let (_, labels) = read(format!("{part}-labels-idx1-ubyte"), 8)?;
        let size = (SIDE * SIDE) as usize;
        if pixels.len() != labels.len() * size || labels.iter().any(|it| usize::from(*it) >= CLASSES.len()) {
            return Err(PeftError::bad_file(
                path,
                format!("it does not go with {} labels of 10 classes", labels.len()),
            ));
        }
        let picture = |pixels: &[u8]| GrayImage::from_raw(SIDE, SIDE, pixels.to_vec()).unwrap_or_default();
        Ok(Self(pixels.chunks(size).map(picture).zip(labels.into_iter().map(usize::from)).collect()))
    }

    /// The pictures of some classes, `each` of every class.
    fn of(&self, classes: &[usize], each: usize) -> Vec<&(GrayImage, usize)> {
        let of_class = |class: usize| self.0.iter().filter(move |it| it.1 == class).take(each);
        classes.iter().flat_map(|it| of_class(*it)).collect()
    }
}

fn save(image: &GrayImage, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(PeftError::io("create", folder))?;
    }
    image.save(path).map_err(|error| PeftError::bad_file(path, error))
}

/// Four pictures of different classes, and the classes of their pixels.
fn canvas(at: usize, pictures: &[&(GrayImage, usize)], classes: &[usize]) -> (GrayImage, GrayImage) {
    let side = SIDE * ACROSS as u32;
    let (mut canvas, mut mask) = (GrayImage::new(side, side), GrayImage::new(side, side));
    for place in 0..ACROSS * ACROSS {
        // A step that shares no factor with the number of pictures visits all of them.
        let (picture, class) = pictures[(at * ACROSS * ACROSS + place) * 7919 % pictures.len()];
        let number = classes.iter().position(|it| it == class).map_or(0, |it| it as u8 + 1);
        let (left, top) = ((place % ACROSS) as u32 * SIDE, (place / ACROSS) as u32 * SIDE);
        for (x, y, pixel) in picture.enumerate_pixels() {
            canvas.put_pixel(left + x, top + y, *pixel);
            mask.put_pixel(left + x, top + y, Luma([if pixel.0[0] > GROUND { number } else { 0 }]));
        }
    }
    (canvas, mask)
}

/// Two pictures beside each other or one above the other, and what a caption says of them.
fn pair(at: usize, pictures: &[&(GrayImage, usize)]) -> (GrayImage, String) {
    let side = SIDE * ACROSS as u32;
    let mut canvas = GrayImage::new(side, side);
    // In the upper or the lower row, or in the left or the right column.
    let (places, relation) = match at % 4 {
        0 => ([(0, 0), (SIDE, 0)], "left of"),
        1 => ([(0, SIDE), (SIDE, SIDE)], "left of"),
        2 => ([(0, 0), (0, SIDE)], "above"),
        _ => ([(SIDE, 0), (SIDE, SIDE)], "above"),
    };
    // Unlike steps, so that the same two pictures do not meet again.
    let chosen = [at * 7919, at * 3217 + 1];
    let things = [0, 1].map(|of| {
        let (picture, class) = pictures[chosen[of] % pictures.len()];
        let (left, top) = places[of];
        for (x, y, pixel) in picture.enumerate_pixels() {
            canvas.put_pixel(left + x, top + y, *pixel);
        }
        let name = CLASSES[*class];
        if name.starts_with('a') { format!("an {name}") } else { format!("a {name}") }
    });
    (canvas, format!("{} {relation} {}", things[0], things[1]))
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [source, target] = words.as_slice() else {
        return Err(PeftError::Invalid("usage: fashion_pictures <folder of IDX files> <new folder>".to_owned()));
    };
    let (source, target) = (Path::new(source), Path::new(target));
    let halves = [("first", [0, 1, 2, 5, 8]), ("second", [3, 4, 6, 7, 9])];
    for (part, file, each, canvases, pairs) in [("train", "train", 1000, 1000, 5000), ("test", "t10k", 200, 100, 200)] {
        let pictures = Pictures::read(source, file)?;
        for (half, classes) in &halves {
            let chosen = pictures.of(classes, each);
            for (at, (picture, class)) in chosen.iter().enumerate() {
                save(picture, &target.join(half).join(part).join(CLASSES[*class]).join(format!("{at:04}.png")))?;
            }
            let folder = target.join("canvases").join(half).join(part);
            for at in 0..canvases {
                let (canvas, mask) = canvas(at, &chosen, classes);
                save(&canvas, &folder.join("images").join(format!("{at:04}.png")))?;
                save(&mask, &folder.join("masks").join(format!("{at:04}.png")))?;
            }
            let names: Vec<&str> = std::iter::once("ground").chain(classes.iter().map(|it| CLASSES[*it])).collect();
            let path = folder.join("classes.txt");
            fs::write(&path, names.join("\n") + "\n").map_err(PeftError::io("write", &path))?;
            let folder = target.join("pairs").join(half).join(part);
            let mut captions = String::new();
            for at in 0..pairs {
                let (canvas, caption) = pair(at, &chosen);
                let name = format!("{at:04}.png");
                save(&canvas, &folder.join(&name))?;
                captions += &format!("{}\n", json!({"image": name, "text": caption}));
            }
            let path = folder.join("metadata.jsonl");
            fs::write(&path, captions).map_err(PeftError::io("write", &path))?;
            let count = chosen.len();
            println!(
                "{}: {count} pictures, {canvases} canvases, {pairs} pairs",
                target.join(half).join(part).display()
            );
        }
    }
    Ok(())
}
