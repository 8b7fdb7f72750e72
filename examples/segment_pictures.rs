//! What a segmentation model sees in pictures, with an adapter and without, as one picture.
//!
//! ```text
//! cargo run --release -p peft-examples --example segment_pictures -- \
//!     segformer-fashion segformer-lora pictures/canvases/second/test found.png 6
//! ```
//!
//! The model and the adapter may be folders or names on the hub. The data is what `peft eval --task semantic-seg` reads. The
//! output has a column for each of the first pictures: from above the picture, its mask, the classes that the model finds by
//! itself, and those that it finds with the adapter. Below stands, in the terminal, which colour is which class.

#![allow(clippy::print_stdout)]

use burn::tensor::{Tensor, TensorData};
use peft::core::files::checkpoint::Placement;
use peft::core::ops::{self, Interpolation};
use peft::core::{PeftError, Result, nn};
use peft::load::adapters::head_of;
use peft::load::{AdapterSource, adapter_folder, model_folder, with_adapters};
use peft::models::SemanticSegmenter;
use peft::models::auto::{ClassifierOptions, load_semantic_segmenter};
use peft::tasks::data::image::{ImageProcessor, Mask, Picture};
use peft::tasks::data::image_data::ImageData;

/// Pixels on the paper for one of a picture, and between two pictures.
const ZOOM: usize = 2;
const GAP: usize = 4;
/// Of classes from 0; they can be told apart with most kinds of colour vision. Further classes have them again, darker.
const COLOURS: [(&str, [u8; 3]); 8] = [
    ("black", [32, 32, 32]),
    ("blue", [86, 180, 233]),
    ("orange", [230, 159, 0]),
    ("green", [0, 158, 115]),
    ("yellow", [240, 228, 66]),
    ("purple", [204, 121, 167]),
    ("red", [213, 94, 0]),
    ("white", [235, 235, 235]),
];
/// Of pixels that are of no class.
const GREY: [u8; 3] = [128; 3];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, data, output, count] = words.as_slice() else {
        let usage = "usage: segment_pictures <model> <adapter> <pictures and masks> <new picture> <how many>";
        return Err(PeftError::Invalid(usage.to_owned()));
    };
    let count: usize = count.parse().map_err(|_| PeftError::Invalid(format!("{count} is no number of pictures")))?;
    let device = peft::device::best_device(None)?;
    let folder = model_folder(model)?;
    let processor = ImageProcessor::load(&folder)?;
    let data = ImageData::file(data);
    let rows = data.rows()?;
    let files: Vec<_> = rows.images()?.into_iter().zip(rows.masks()?).take(count).collect();
    if files.is_empty() {
        return Err(PeftError::Invalid("there is no picture to show".to_owned()));
    }

    let place = Placement::from(&device);
    let (alone, _) = load_semantic_segmenter(&folder, place.clone(), &ClassifierOptions::default())?;
    let adapters = [AdapterSource::new(adapter_folder(adapter)?)];
    let (base, _) = load_semantic_segmenter(&folder, place, &head_of(&adapters))?;
    let adapted = with_adapters(base, &adapters, &peft::methods())?;
    let (alone, adapted) = (nn::eval(&alone), nn::eval(adapted.model()));

    let mut columns = Vec::new();
    for (image, mask) in &files {
        let picture = Picture::read(image)?;
        // In the size in which the model reads a picture, and without classes that its processor leaves out.
        let mask = processor.classes(&Mask::read(mask)?).map_err(|it| it.in_file(mask))?;
        let size = [mask.height as usize, mask.width as usize];
        let ([height, width], pixels) = processor.pixels(&picture).map_err(|it| it.in_file(image))?;
        if [height, width] != size {
            let reason = format!("it is read as {height} × {width} pixels, and its mask as {} × {}", size[0], size[1]);
            return Err(PeftError::bad_file(image, reason));
        }
        let pixels = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, height, width]), &device);
        columns.push([
            Tile::of_picture(&picture, size),
            Tile::of_classes(size, mask.classes.iter().map(|it| i64::from(*it))),
            Tile::of_classes(size, found(&alone, pixels.clone(), size)),
            Tile::of_classes(size, found(&adapted, pixels, size)),
        ]);
    }
    paper(&columns).write(output)?;

    for (class, name) in data.mask_classes(&folder)?.names.iter().enumerate() {
        let darker = if class < COLOURS.len() { "" } else { "dark " };
        println!("{name}: {darker}{}", COLOURS[class % COLOURS.len()].0);
    }
    println!("{output} shows {} pictures", columns.len());
    Ok(())
}

/// The likeliest class of every pixel.
fn found(model: &impl SemanticSegmenter, pixels: Tensor<4>, size: [usize; 2]) -> Vec<i64> {
    let logits = ops::interpolate(model.logits(pixels), size, Interpolation::Bilinear);
    let classes = match logits.dims()[1] {
        1 => logits.greater_elem(0.0).int(),
        _ => logits.argmax(1),
    };
    classes.into_data().iter::<i64>().collect()
}

/// A picture on the paper.
struct Tile {
    /// Height and width.
    size: [usize; 2],
    pixels: Vec<[u8; 3]>,
}

impl Tile {
    /// The picture with so many pixels, each the one that is nearest.
    fn of_picture(picture: &Picture, size: [usize; 2]) -> Self {
        let nearest = |at: usize, of: usize, there: u32| (at * there as usize / of) as u32;
        let pixel = |at: usize| {
            let (row, column) = (at / size[1], at % size[1]);
            picture.pixel(nearest(row, size[0], picture.height), nearest(column, size[1], picture.width))
        };
        Self { size, pixels: (0..size[0] * size[1]).map(pixel).collect() }
    }

    fn of_classes(size: [usize; 2], classes: impl IntoIterator<Item = i64>) -> Self {
        let colour = |class: i64| match usize::try_from(class) {
            Ok(class) if class != usize::from(u8::MAX) => {
                let colour = COLOURS[class % COLOURS.len()].1;
                if class < COLOURS.len() { colour } else { colour.map(|it| it / 2) }
            }
            _ => GREY,
        };
        Self { size, pixels: classes.into_iter().map(colour).collect() }
    }
}

/// Tiles in columns, on white.
fn paper<const ROWS: usize>(columns: &[[Tile; ROWS]]) -> Picture {
    let heights: [usize; ROWS] =
        std::array::from_fn(|row| columns.iter().map(|it| it[row].size[0] * ZOOM).max().unwrap_or_default());
    let widths: Vec<usize> =
        columns.iter().map(|it| it.iter().map(|it| it.size[1] * ZOOM).max().unwrap_or_default()).collect();
    let height = heights.iter().sum::<usize>() + GAP * (ROWS - 1);
    let width = widths.iter().sum::<usize>() + GAP * columns.len().saturating_sub(1);
    let mut rgb = vec![u8::MAX; 3 * height * width];
    let mut left = 0;
    for (column, wide) in columns.iter().zip(&widths) {
        let mut top = 0;
        for (tile, tall) in column.iter().zip(heights) {
            for at in 0..tile.pixels.len() * ZOOM * ZOOM {
                let (row, column) = (at / (tile.size[1] * ZOOM), at % (tile.size[1] * ZOOM));
                let pixel = tile.pixels[row / ZOOM * tile.size[1] + column / ZOOM];
                let place = 3 * ((top + row) * width + left + column);
                rgb[place..place + 3].copy_from_slice(&pixel);
            }
            top += tall + GAP;
        }
        left += wide + GAP;
    }
    Picture { width: width as u32, height: height as u32, rgb }
}
