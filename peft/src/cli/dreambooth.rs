//! Flags of `peft train` for pictures of a subject.

use std::path::PathBuf;

use peft_tasks::tasks::text_to_image::DreamBoothOptions;

#[derive(Debug, Default, clap::Args)]
pub(super) struct DreamBoothArgs {
    /// What the pictures show, for text-to-image: 'a photo of sks dog'.
    #[arg(long, value_name = "TEXT")]
    instance_prompt: Option<String>,
    /// Folder of pictures of the class that the subject belongs to, which the model is to keep.
    #[arg(long, value_name = "DIR")]
    class_data: Option<PathBuf>,
    /// What those show: 'a photo of a dog'.
    #[arg(long, value_name = "TEXT")]
    class_prompt: Option<String>,
    /// How much pictures of the class count beside those of the subject [default: 1]
    #[arg(long, value_name = "NUMBER")]
    prior_weight: Option<f64>,
    /// Let timesteps with a higher signal-to-noise ratio count less, such as 5.
    #[arg(long, value_name = "NUMBER")]
    min_snr_gamma: Option<f64>,
    /// Height and width that pictures are cut to, in pixels [default: what the model was trained on]
    #[arg(long, value_name = "PIXELS")]
    resolution: Option<usize>,
}

impl DreamBoothArgs {
    /// What was given, over what a run file says.
    pub(super) fn fill(&self, options: &mut DreamBoothOptions) {
        let DreamBoothOptions { instance_prompt, class_data, class_prompt, prior_weight, min_snr_gamma, resolution } =
            options;
        *instance_prompt = self.instance_prompt.clone().or(instance_prompt.take());
        *class_data = self.class_data.clone().or(class_data.take());
        *class_prompt = self.class_prompt.clone().or(class_prompt.take());
        *prior_weight = self.prior_weight.unwrap_or(*prior_weight);
        *min_snr_gamma = self.min_snr_gamma.or(*min_snr_gamma);
        *resolution = self.resolution.or(*resolution);
    }
}
