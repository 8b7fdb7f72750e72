//! Pictures as image processors of transformers read them: `fixtures/images`.

use std::collections::BTreeSet;

use peft::core::files::checkpoint::TensorFile;
use peft::tasks::data::image::{ImageProcessor, Mask, Picture};

use crate::support::fixtures;

/// Resampling rounds to 8 bits twice; its sums may differ in their last bits, so that a number is rounded the other way.
const MOST_ROUNDED_OTHERWISE: f64 = 0.01;

fn check(name: &str, level: f32) {
    let folder = fixtures().join("images").join(name);
    let expected = TensorFile::open(folder.join("expected.safetensors")).unwrap();
    let processor = ImageProcessor::load(&folder).unwrap();
    let ([height, width], pixels) = processor.pixels(&Picture::read(folder.join("image.png")).unwrap()).unwrap();
    assert_eq!(expected.shape("pixel_values").unwrap(), [3, height, width]);
    let wanted: Vec<f32> = expected.floats("pixel_values").unwrap().iter::<f32>().collect();
    let differences: Vec<f32> = pixels.iter().zip(&wanted).map(|(ours, theirs)| (ours - theirs).abs()).collect();
    let most = differences.iter().fold(0.0_f32, |most, it| most.max(*it));
    assert!(most <= level * 1.001, "a number is off by {most}, where one level of 255 is {level}");
    let off = differences.iter().filter(|it| **it > 1e-5).count() as f64 / differences.len() as f64;
    assert!(off <= MOST_ROUNDED_OTHERWISE, "{:.2} % of the numbers are rounded otherwise", off * 100.0);
    let mask = folder.join("mask.png");
    assert_eq!(expected.shape("labels").is_some(), mask.is_file());
    if mask.is_file() {
        let classes = processor.classes(&Mask::read(mask).unwrap()).unwrap();
        assert_eq!(expected.shape("labels").unwrap(), [classes.height as usize, classes.width as usize]);
        let wanted: Vec<u16> = expected.integers("labels").unwrap().iter::<i64>().map(|it| it as u16).collect();
        assert_eq!(classes.classes, wanted);
    }
}

/// The recorded cases, and what one of the 255 levels of a channel comes to at most.
macro_rules! pictures {
    ($($case:ident: $level:expr),+ $(,)?) => {
        $(#[test] fn $case() { check(stringify!($case), $level); })+

        #[test]
        fn no_recorded_picture_is_left_out() {
            let recorded: BTreeSet<String> = std::fs::read_dir(fixtures().join("images"))
                .unwrap()
                .map(|it| it.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(recorded, BTreeSet::from([$(stringify!($case).to_owned()),+]));
        }
    };
}

pictures! {
    clip: 1.0 / 255.0 / 0.26,
    clip_edges: 1.0 / 0.26,
    segformer: 1.0 / 255.0 / 0.224,
    segformer_hamming: 1.0 / 255.0 / 0.224,
    vit: 1.0 / 255.0 / 0.5,
    vit_larger: 1.0 / 255.0 / 0.5,
    vit_old: 1.0 / 255.0 / 0.2,
}
