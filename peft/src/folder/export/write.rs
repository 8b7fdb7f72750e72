//! Writing an adapter in the form of another program.

use std::path::Path;

use peft_core::files::checkpoint::Placement;
use peft_core::{PeftError, Result};
use peft_lora::combine::convert::Rank;

use super::form::{ExportOptions, Exported, Format};
use super::pairs::Pairs;
use super::{image, mlx, portable};
use crate::folder::adapted::{made_of, refuse_source};
use crate::folder::convert::convert;
use crate::run::registry::Registry;

/// Writes the adapter in the folder `adapter` in another form into the folder `output`.
///
/// # Errors
/// If the folder cannot be read, or holds what the form cannot say; the message names it and the next step.
pub fn export(
    adapter: &Path,
    output: &Path,
    options: &ExportOptions,
    registry: &Registry,
    place: impl Into<Placement>,
) -> Result<Exported> {
    refuse_source(adapter, output)?;
    options.base.iter().try_for_each(|base| refuse_source(base, output))?;
    let source = adapter;
    let plain = tempfile::tempdir().map_err(PeftError::io("create", "a temporary folder"))?;
    let (adapter, converted) = match options.rank {
        None => (adapter, Vec::new()),
        Some(rank) => {
            let Some(base) = &options.base else {
                return Err(PeftError::config("rank", "needs the base model to convert the adapter: name it too"));
            };
            (plain.path(), convert(adapter, base, Rank::Fixed(rank), plain.path(), registry, place)?)
        }
    };
    let part = options.component.as_deref();
    let parts = || image::parts(adapter, part);
    let exported = match options.format {
        Format::Portable => {
            Pairs::read(adapter).and_then(|it| portable::write(it, output, options.base.as_deref(), registry))
        }
        Format::Diffusers => parts().and_then(|it| image::write_diffusers(&it, output)),
        Format::Kohya => parts().and_then(|it| image::write_kohya(&it, output)),
        Format::Mlx => Pairs::read(adapter).and_then(|it| mlx::write(&it, output)),
    };
    let mut exported = exported.map_err(|error| made_of(error, &[source.to_path_buf()]))?;
    exported.converted = converted;
    Ok(exported)
}
