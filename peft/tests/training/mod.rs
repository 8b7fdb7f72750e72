//! Training: the reference's ten steps, exact resume, and what may go wrong.

mod batch_layout;
mod early_stopping;
mod gradient_checkpointing;
mod process_group;
mod reference_steps;
mod resume;
mod run;
mod runs;
mod sharded;
mod tasks;
