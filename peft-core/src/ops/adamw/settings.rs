//! What a step of AdamW is told.

/// What a step of AdamW multiplies by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWStep {
    /// The learning rate.
    pub rate: f32,
    /// What is left of a moment, of the first and of the second one.
    pub betas: [f32; 2],
    /// Added to the root of the second moment.
    pub epsilon: f32,
    /// The share of the parameter that decays in a step, before the rate.
    pub decay: f32,
    /// Which step this is for the parameter, from 1.
    pub time: i32,
}
