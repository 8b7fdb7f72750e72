//! `image-cls`: one label, several, or a number for a picture.

use std::path::Path;

use burn::tensor::Device;
use peft_core::Result;
use peft_core::files::checkpoint::Placement;
use peft_models::ImageClassifier;
use peft_models::auto::{ArchitectureRegistry, AutoImageClassifier, ClassifierOptions};
use peft_models::common::config::{LabelConfig, RawConfig};
use peft_tasks::data::image::listing;
use peft_tasks::data::image_data::ImageData;
use peft_tasks::data::labels::LabelSet;
use peft_tasks::data::text_data::TextData;
use peft_tasks::tasks::image_classification::ImageClassification;
use peft_tasks::tasks::loss::{self, ProblemType};
use peft_tasks::train::identity::files_mark;

use crate::task::inputs::ForwardInputs;
use crate::task::kind::{ForwardOutput, TaskKind, TaskSource};

/// Labels pictures.
pub struct ImageClassificationKind;

/// The same file and columns, as pictures.
pub(super) fn images(data: &TextData) -> ImageData {
    ImageData::file(&data.file).columns(data.columns.clone())
}

/// The table, if there is one, by its contents; pictures by their names and sizes.
pub(super) fn mark(data: &TextData) -> Result<String> {
    files_mark(&images(data).rows()?.files()?)
}

impl TaskKind for ImageClassificationKind {
    type Model = AutoImageClassifier;
    type Task = ImageClassification;

    fn name(&self) -> &'static str {
        "image-cls"
    }

    fn aliases(&self) -> &'static [&'static str] {
        &["image-classification"]
    }

    fn task_type(&self) -> Option<&'static str> {
        None
    }

    fn class_endings(&self) -> &'static [&'static str] {
        &["ForImageClassification"]
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
    ) -> Result<AutoImageClassifier> {
        Ok(architectures.load_image_classifier(base, place, head)?.0)
    }

    fn unallocated(
        &self,
        architectures: &ArchitectureRegistry,
        raw: &RawConfig,
        device: &Device,
    ) -> Result<AutoImageClassifier> {
        architectures.image_classifier(raw, device)
    }

    fn check_data(&self, data: &Path) -> Result<()> {
        listing::check(data)
    }

    fn mark_data(&self, data: &TextData) -> Result<String> {
        mark(data)
    }

    fn learn_labels(&self, data: &TextData, _base: &Path) -> Result<Option<LabelSet>> {
        images(data).label_set().map(Some)
    }

    fn head<'a>(&self, model: &'a AutoImageClassifier) -> Option<&'a LabelConfig> {
        Some(model.labels())
    }

    fn task(&self, source: &TaskSource<'_>) -> Result<ImageClassification> {
        let data = images(source.data).augment(source.options.augment.clone());
        data.image_classification(source.base, source.labels()?)
    }

    fn inputs(&self) -> Vec<&'static str> {
        vec!["pixel_values", "labels"]
    }

    fn forward(&self, model: &AutoImageClassifier, inputs: &ForwardInputs<'_>) -> Result<ForwardOutput> {
        let logits = model.logits(inputs.pixel_values(model.num_channels(), model.smallest_picture())?);
        let loss = match inputs.class_labels(model.num_labels())? {
            Some(labels) => {
                let named = model.labels().problem_type.as_deref();
                let problem = ProblemType::resolve(named, model.num_labels(), &labels)?;
                Some(loss::classification(logits.clone(), labels, problem)?)
            }
            None => None,
        };
        Ok(ForwardOutput::logits(logits, loss))
    }
}
