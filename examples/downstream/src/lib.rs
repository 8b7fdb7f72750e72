//! A method, a model and a task of one's own for the `peft` command, each in a file: [`road`], [`albert`], [`ranking`].
//!
//! `main.rs` registers them. They are a library, so that tests can use them without the command.

pub mod albert;
pub mod ranking;
pub mod road;
