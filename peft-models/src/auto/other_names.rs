//! Checkpoints whose keys are those of another release of transformers.

use peft_core::Adaptable;
use peft_core::files::checkpoint::Checkpoint;

/// Says where parameters lie in a checkpoint that does not have them under their published names. `prefix` is what the keys of
/// a headless checkpoint lack.
pub(super) fn are_also_known(checkpoint: &mut Checkpoint, model: &impl Adaptable, prefix: &str) {
    for (there, ours) in model.spec().other_paths() {
        let headless = there.strip_prefix(prefix).map(str::to_owned);
        let key = [Some(there), headless].into_iter().flatten().find(|it| checkpoint.contains(it));
        if let Some(key) = key.filter(|_| !checkpoint.contains(&ours)) {
            checkpoint.also_under(ours, key);
        }
    }
}
