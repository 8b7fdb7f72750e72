//! What the reference's own tests say about adapters: `fixtures/CHECKLIST.md` names which of them is covered where.

mod activated;
mod combination;
mod conversion;
mod folders;
mod layer_replication;
mod lifecycle;
mod mixed_rows;
mod nets;
mod parameter_counts;
mod prompts;
mod refusals;
mod rows_of_all_layers;
mod several;
mod starts;
mod starts_from_data;
