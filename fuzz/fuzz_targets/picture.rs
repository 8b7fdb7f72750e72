//! Any bytes as a picture and as a mask, under the name of any format.

#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use peft_tasks::data::image::{Mask, Picture};

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let name = ["a.png", "a.jpg", "a.gif", "a.bmp", "a.tif", "a.webp", "a"][*first as usize % 7];
    if let Ok(picture) = Picture::parse(name, rest) {
        assert_eq!(picture.rgb.len(), picture.width as usize * picture.height as usize * 3);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join(name);
    fs::write(&file, rest).expect("a file");
    if let Ok(mask) = Mask::read(&file) {
        assert_eq!(mask.classes.len(), mask.width as usize * mask.height as usize);
    }
});
