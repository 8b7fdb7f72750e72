//! What the image processors of transformers start from, where a `preprocessor_config.json` says nothing.

use serde_json::{Value, json};

/// What a processor does unless it is told otherwise.
pub(super) struct Defaults {
    /// Its class in transformers, without `ImageProcessor`.
    pub(super) class: &'static str,
    /// Whether a single number for `size` is both sides; else it is the shorter one.
    pub(super) is_square: bool,
    pub(super) size: [usize; 2],
    pub(super) crop: Option<[usize; 2]>,
    /// As Pillow numbers its filters.
    pub(super) resample: u64,
    mean: [f64; 3],
    std: [f64; 3],
}

const HALVES: [f64; 3] = [0.5; 3];
const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
const CLIP: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
const BILINEAR: u64 = 2;
const BICUBIC: u64 = 3;

/// Source: `image_processing_pil_*.py` of transformers 5.23.
const KNOWN: [Defaults; 7] = [
    Defaults {
        class: "ViT",
        is_square: true,
        size: [224, 224],
        crop: None,
        resample: BILINEAR,
        mean: HALVES,
        std: HALVES,
    },
    Defaults {
        class: "Segformer",
        is_square: true,
        size: [512, 512],
        crop: None,
        resample: BILINEAR,
        mean: IMAGENET.0,
        std: IMAGENET.1,
    },
    Defaults {
        class: "CLIP",
        is_square: false,
        size: [224, 224],
        crop: Some([224, 224]),
        resample: BICUBIC,
        mean: CLIP.0,
        std: CLIP.1,
    },
    Defaults {
        class: "Blip",
        is_square: true,
        size: [384, 384],
        crop: None,
        resample: BICUBIC,
        mean: CLIP.0,
        std: CLIP.1,
    },
    Defaults {
        class: "DeiT",
        is_square: true,
        size: [256, 256],
        crop: Some([224, 224]),
        resample: BICUBIC,
        mean: HALVES,
        std: HALVES,
    },
    Defaults {
        class: "Beit",
        is_square: true,
        size: [224, 224],
        crop: None,
        resample: BICUBIC,
        mean: HALVES,
        std: HALVES,
    },
    Defaults {
        class: "Bit",
        is_square: false,
        size: [224, 224],
        crop: Some([224, 224]),
        resample: BICUBIC,
        mean: CLIP.0,
        std: CLIP.1,
    },
];

impl Defaults {
    /// Those of a class, by any of the names that it has had: `ViTImageProcessor`, `ViTImageProcessorFast`,
    /// `ViTFeatureExtractor`.
    pub(super) fn of_class(name: &str) -> Option<&'static Self> {
        let name = ["Fast", "Pil"].iter().find_map(|it| name.strip_suffix(it)).unwrap_or(name);
        let kind = name.strip_suffix("ImageProcessor").or_else(|| name.strip_suffix("FeatureExtractor"))?;
        // Swin has none of its own.
        KNOWN.iter().find(|it| it.class == kind)
    }

    /// The names of all classes.
    pub(super) fn classes() -> String {
        KNOWN.iter().map(|it| format!("{}ImageProcessor", it.class)).collect::<Vec<_>>().join(", ")
    }

    /// The value of a field.
    pub(super) fn value(&self, field: &str) -> Value {
        let sides = |[height, width]: [usize; 2]| json!({"height": height, "width": width});
        match field {
            "size" if self.is_square => sides(self.size),
            "size" => json!({"shortest_edge": self.size[0]}),
            "crop_size" => self.crop.map_or(sides([224, 224]), sides),
            "do_center_crop" => self.crop.is_some().into(),
            "resample" => self.resample.into(),
            "image_mean" => json!(self.mean),
            "image_std" => json!(self.std),
            "do_resize" | "do_rescale" | "do_normalize" => true.into(),
            "rescale_factor" => json!(1.0 / 255.0),
            _ => Value::Null,
        }
    }
}
