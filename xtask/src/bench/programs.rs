//! The programs that do the work, and the words that each is started with.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::shapes::{Peer, Shape, Tuner};

/// Our worker on one device, and what it is compared with.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) worker: PathBuf,
    pub(crate) device: String,
    pub(crate) threads: usize,
    pub(crate) torch: Option<Torch>,
}

/// A Python with torch, and the script that it runs.
#[derive(Debug, Clone)]
pub(crate) struct Torch {
    pub(crate) python: PathBuf,
    pub(crate) script: PathBuf,
    /// What torch calls the device.
    pub(crate) device: String,
    /// As one trains on a card: products of f32 in tf32, and in mixed precision a base in bf16.
    pub(crate) as_on_cards: bool,
}

impl Programs {
    /// Our program at the work of a shape, whose checkpoint is in a folder.
    pub(crate) fn ours(&self, shape: &Shape, method: &Tuner, folder: &Path) -> Command {
        let mut command = self.worker(shape, folder);
        command.args(method.arguments(method.kind));
        command
    }

    /// Another program at the same work.
    pub(crate) fn peer(&self, shape: &Shape, method: &Tuner, peer: Peer, folder: &Path) -> Result<Command, String> {
        let mut command = match peer {
            Peer::PeftTorch | Peer::PeftTorchCompiled => {
                let torch = self.torch.as_ref().ok_or_else(|| format!("`{}` needs `--python PATH`", peer.name()))?;
                let mut command = Command::new(&torch.python);
                command.arg(&torch.script);
                command.args(work(shape, folder)).args(method.arguments(method.kind));
                command.args(["--device", &torch.device, "--threads", &self.threads.to_string()]);
                command.args((peer == Peer::PeftTorchCompiled).then_some("--compile"));
                if torch.as_on_cards {
                    command.arg(if method.bf16 { "--bf16-base" } else { "--tf32" });
                }
                // What it says about itself is of no interest, and it has nothing to look up.
                command.envs([
                    ("HF_HUB_OFFLINE", "1"),
                    ("PYTHONWARNINGS", "ignore"),
                    ("TOKENIZERS_PARALLELISM", "false"),
                ]);
                command
            }
            Peer::OursF32 => {
                let mut command = self.worker(shape, folder);
                command.args(method.in_f32().arguments(method.kind));
                command
            }
            Peer::BurnLora => {
                let mut command = self.worker(shape, folder);
                command.args(method.arguments("burn-lora"));
                command
            }
            Peer::Full => {
                let mut command = self.worker(shape, folder);
                command.args(["--method", "full"]);
                command
            }
        };
        self.limit_threads(&mut command);
        Ok(command)
    }

    /// What writes random weights beside the folder's `config.json`.
    pub(crate) fn synthesise(&self, shape: &Shape, folder: &Path) -> Command {
        let mut command = self.worker(shape, folder);
        command.args(["--method", "synthesise", "--float", shape.float]);
        command
    }

    fn worker(&self, shape: &Shape, folder: &Path) -> Command {
        let mut command = Command::new(&self.worker);
        command.args(work(shape, folder)).args(["--device", &self.device]);
        self.limit_threads(&mut command);
        command
    }

    fn limit_threads(&self, command: &mut Command) {
        let threads = self.threads.to_string();
        command.envs(["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"].map(|it| (it, &threads)));
    }
}

fn work(shape: &Shape, folder: &Path) -> Vec<OsString> {
    let text = |it: &str| OsString::from(it);
    let mut work = vec![
        text("--folder"),
        folder.as_os_str().to_owned(),
        text("--task"),
        text(shape.task),
        text("--batch"),
        text(&shape.batch.to_string()),
        text("--seq"),
        text(&shape.seq.to_string()),
        text("--size"),
        text(&shape.size.to_string()),
    ];
    work.extend(shape.targets.into_iter().flat_map(|it| [text("--targets"), text(it)]));
    work.extend(shape.saved.into_iter().flat_map(|it| [text("--modules-to-save"), text(it)]));
    work
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::shapes::{METHODS, TINY, lora};

    fn words(command: &Command) -> String {
        command.get_args().map(|it| it.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn torch_trains_as_one_does_on_a_card() {
        let torch = |as_on_cards| {
            Some(Torch { python: "python3".into(), script: "t.py".into(), device: "cuda".to_owned(), as_on_cards })
        };
        let programs = |torch| Programs { worker: "w".into(), device: "cuda".to_owned(), threads: 2, torch };
        let peer = |torch, method: &Tuner| {
            programs(torch).peer(&TINY[0], method, Peer::PeftTorch, Path::new("f")).map(|it| words(&it))
        };
        let (single, half) = (lora("one", 8, false), lora("one", 8, false).in_bf16());
        assert!(peer(torch(true), &single).unwrap().ends_with("--device cuda --threads 2 --tf32"));
        assert!(peer(torch(true), &half).unwrap().ends_with("--bf16-base"));
        assert!(peer(torch(false), &half).unwrap().ends_with("--threads 2"));
        assert!(peer(None, &METHODS[0]).unwrap_err().contains("--python"));
    }
}
