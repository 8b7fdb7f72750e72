//! Pictures as image processors of transformers read them: `fixtures/images`.

use std::collections::BTreeSet;

use peft::core::files::checkpoint::TensorFile;
use peft::tasks::data::image::{ImageProcessor, Mask, Picture};

use crate::support::fixtures;

fn check(name: &str) {
    let folder = fixtures().join("images").join(name);
    let expected = TensorFile::open(folder.join("expected.safetensors")).unwrap();
    let processor = ImageProcessor::load(&folder).unwrap();
    let ([height, width], pixels) = processor.pixels(&Picture::read(folder.join("image.png")).unwrap()).unwrap();
    assert_eq!(expected.shape("pixel_values").unwrap(), [3, height, width]);
    let wanted: Vec<f32> = expected.floats("pixel_values").unwrap().iter::<f32>().collect();
    let off = pixels.iter().zip(&wanted).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0_f32, f32::max);
    assert!(off <= 1e-6, "a number is off by {off}");
    let mask = folder.join("mask.png");
    assert_eq!(expected.shape("labels").is_some(), mask.is_file());
    if mask.is_file() {
        let classes = processor.classes(&Mask::read(mask).unwrap()).unwrap();
        assert_eq!(expected.shape("labels").unwrap(), [classes.height as usize, classes.width as usize]);
        let wanted: Vec<u16> = expected.integers("labels").unwrap().iter::<i64>().map(|it| it as u16).collect();
        assert_eq!(classes.classes, wanted);
    }
}

/// The recorded cases.
macro_rules! pictures {
    ($($case:ident),+ $(,)?) => {
        $(#[test] fn $case() { check(stringify!($case)); })+

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
    clip, clip_edges, segformer, segformer_hamming, vit, vit_larger, vit_old,
}
