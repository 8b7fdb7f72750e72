//! The noise predictor of Stable Diffusion: 1.5, 2.1 and XL.

mod blocks;
mod config;
mod model;

pub use blocks::{DownBlock, MidBlock, UpBlock};
pub use config::{DownBlockType, MidBlockType, OneOrMany, UNet2dConditionConfig, UpBlockType};
pub use model::{UNet2dConditionModel, architecture};
