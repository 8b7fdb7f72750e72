//! Where [`TextData`] was before it moved to `peft_tasks`.

pub use peft_tasks::data::text_data::TextData;
