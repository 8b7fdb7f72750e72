//! `semantic-seg`: a class for every pixel.

use std::path::Path;

use burn::tensor::Device;
use peft_core::files::checkpoint::Placement;
use peft_core::ops::{self, Interpolation};
use peft_core::{Labels, Result};
use peft_models::SemanticSegmenter;
use peft_models::auto::{ArchitectureRegistry, AutoSemanticSegmenter, ClassifierOptions};
use peft_models::common::config::{LabelConfig, RawConfig};
use peft_tasks::data::image::listing;
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::loss;
use peft_tasks::tasks::semantic_segmentation::SemanticSegmentation;

use crate::task::image_classification::{images, mark};
use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Labels every pixel.
pub struct SemanticSegmentationKind;

impl TaskKind for SemanticSegmentationKind {
    type Model = AutoSemanticSegmenter;
    type Task = SemanticSegmentation;

    fn name(&self) -> &'static str {
        "semantic-seg"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["semantic-segmentation"]
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForSemanticSegmentation"]
    }

    fn reads_text(&self) -> bool {
        false
    }

    fn load(
        &self,
        architectures: &ArchitectureRegistry,
        base: &Path,
        place: &Placement,
        head: &ClassifierOptions,
    ) -> Result<AutoSemanticSegmenter> {
        Ok(architectures.load_semantic_segmenter(base, place, head)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoSemanticSegmenter> {
        architectures.semantic_segmenter(raw, device)
    }

    fn check_data(&self, data: &Path) -> Result<()> {
        listing::check(data)
    }

    fn mark_data(&self, data: &TextData) -> Result<String> {
        mark(data)
    }

    fn learn_labels(&self, data: &TextData, base: &Path) -> Result<Option<LabelSet>> {
        images(data).mask_classes(base).map(Some)
    }

    fn head<'a>(&self, model: &'a AutoSemanticSegmenter) -> Option<&'a LabelConfig> {
        Some(model.labels())
    }

    fn labels_to_save(&self, labels: &LabelSet) -> Labels {
        Labels { problem_type: None, names: labels.names.clone() }
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<SemanticSegmentation> {
        let data = images(source.data).augment(source.options.augment.clone());
        data.semantic_segmentation(source.base, source.labels()?)
    }

    fn inputs(&self) -> Vec<&'static str> {
        vec!["pixel_values", "labels"]
    }

    fn forward(&self, model: &AutoSemanticSegmenter, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(inputs.pixel_values(model.num_channels(), model.smallest_picture())?);
        let ignored = model.ignored_label();
        // With one output a pixel is on or off.
        let labels = inputs.classes::<3>(model.num_labels().max(2), ignored)?;
        let loss = labels.map(|labels| {
            let [_, height, width] = labels.dims();
            let of_pixels = ops::interpolate(logits.clone(), [height, width], Interpolation::Bilinear);
            loss::segmentation(of_pixels, labels, ignored)
        });
        Ok(ForwardOutput::logits(logits, loss))
    }
}
